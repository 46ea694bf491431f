"""Uploads by GCS's XML API, which obstore uses, before an emulator that takes them by the JSON API alone.

Names, bytes and preconditions are handed on and judged by the emulator; only their spelling is changed here. What
obstore sends was recorded (0.12): PUT with x-goog-if-generation-match, POST ?uploads,
PUT ?partNumber&uploadId, POST ?uploadId.
"""

from __future__ import annotations

import http.client
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_BOUNDARY = "between-what-is-said-of-it-and-its-bytes"
_END = f"--{_BOUNDARY}--\r\n".encode()


def _part(kind: str, body: bytes) -> tuple[bytes, ...]:
    return f"--{_BOUNDARY}".encode(), f"Content-Type: {kind}".encode(), b"", body


@contextmanager
def xml_uploads(url: str) -> Iterator[str]:
    """The URL of one that speaks both for the emulator at ``url``."""
    server = _Relay(url)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Relay(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = urllib.parse.urlsplit(url).netloc
        self.parts: dict[str, dict[int, bytes]] = {}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Relay

    def do_GET(self) -> None:
        self._answer(*self._ask(self.command, self.path, b"", dict(self.headers)))

    do_HEAD = do_DELETE = do_GET

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        query = self._query()
        if "uploadId" in query:
            self.server.parts[query["uploadId"]][int(query["partNumber"])] = body
            self._answer(200, {"ETag": f'"{query["partNumber"]}"'}, b"")
        else:
            self._put(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = self._query()
        if "uploads" in query:
            name = f"upload-{len(self.server.parts)}"
            self.server.parts[name] = {}
            text = f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
            self._answer(200, {}, text.encode())
        else:
            parts = self.server.parts[query["uploadId"]]
            self._put(b"".join(parts[number] for number in sorted(parts)), complete=True)

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def _query(self) -> dict[str, str]:
        return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query, keep_blank_values=True))

    def _put(self, body: bytes, *, complete: bool = False) -> None:
        bucket, _, name = urllib.parse.urlsplit(self.path).path[1:].partition("/")
        query = {"uploadType": "multipart"}  # of a plain "media" upload the emulator does not look at preconditions
        if (generation := self.headers.get("x-goog-if-generation-match")) is not None:
            query["ifGenerationMatch"] = generation
        path = f"/upload/storage/v1/b/{bucket}/o?{urllib.parse.urlencode(query)}"
        about = json.dumps({"name": urllib.parse.unquote(name)}).encode()
        whole = b"\r\n".join((*_part("application/json", about), *_part("application/octet-stream", body), _END))
        kind = f"multipart/related; boundary={_BOUNDARY}"
        status, _, text = self._ask("POST", path, whole, {"Content-Type": kind})
        if status != 200:
            self._answer(status, {}, text)
            return
        told = json.loads(text)
        tag = told["etag"].strip('"')
        xml = f"<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>".encode()
        headers = {"ETag": f'"{tag}"', "x-goog-generation": told["generation"]}
        self._answer(200, headers, xml if complete else b"")

    def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.server.behind, timeout=20)
        try:
            kept = {name: value for name, value in headers.items() if name.lower() not in ("host", "content-length")}
            connection.request(method, path, body or None, kept)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        lengths = [value for name, value in headers.items() if name.lower() == "content-length"]
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", lengths[0] if self.command == "HEAD" and lengths else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
