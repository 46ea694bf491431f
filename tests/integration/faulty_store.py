"""An HTTP relay before a real S3 server that is slow, refuses, lies, breaks off, lists late, or knows one key alone."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


@dataclass
class Faults:
    """What is wrong just now; set by a test."""

    url: str = ""
    status: int = 0
    """Answered to everything."""
    rate_bytes_per_s: float = 0.0
    flip: bool = False
    """The middle byte of each object is another."""
    short: int = 0
    """So many bytes of an object's body, then the connection ends."""
    key: str = ""
    """The only access key that is not expired; empty: all are good."""
    expires_after: int = 0
    """After so many objects were read, ``key`` becomes another."""
    late: bool = False
    """Listings are those from before this was set: what was put since is not in them, what was deleted still is."""
    listed: dict[str, bytes] = field(default_factory=dict)
    """The last listing of each prefix that was not late."""
    keys_seen: list[str] = field(default_factory=list)
    objects_read: int = 0


@contextmanager
def faulty(server: str) -> Iterator[Faults]:
    """A relay before the server at a URL, without faults at first."""
    faults, upstream = Faults(), urlsplit(server)

    class Relay(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: object) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
            key = found[1] if found else ""
            faults.keys_seen.append(key)
            if faults.status:
                self.refuse(faults.status, b"<Error><Code>SlowDown</Code></Error>")
            elif faults.key and key != faults.key:
                self.refuse(400, EXPIRED)
            else:
                self.relay(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def refuse(self, status: int, text: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def relay(self, body: bytes) -> None:
            connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port or 80, timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            data = self.as_listed(response.read())
            self.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                    self.send_header(name, value)
            size = str(len(data)) if self.command != "HEAD" else response.getheader("Content-Length", "0")
            self.send_header("Content-Length", size)
            self.end_headers()
            with suppress(OSError):
                self.send_body(data)
            connection.close()

        def as_listed(self, data: bytes) -> bytes:
            """The answer to this request, or an older one in its place."""
            if b"<ListBucketResult" not in data:
                return data
            prefix = parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
            if not faults.late:
                faults.listed[prefix] = data
            return faults.listed.get(prefix, re.sub(rb"<Contents>.*</Contents>", b"", data, flags=re.DOTALL))

        def send_body(self, data: bytes) -> None:
            is_object = self.command == "GET" and "/objects/" in self.path and len(data) > 0
            if is_object:
                faults.objects_read += 1
                if faults.expires_after and faults.objects_read >= faults.expires_after:
                    faults.key, faults.expires_after = "renewed", 0
            if is_object and faults.flip:
                middle = len(data) // 2
                data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            if is_object and faults.short:
                self.wfile.write(data[: faults.short])
                self.close_connection = True
                return
            step = int(faults.rate_bytes_per_s / 20) if is_object and faults.rate_bytes_per_s else len(data)
            for at in range(0, len(data), max(1, step)):
                self.wfile.write(data[at : at + step])
                time.sleep(0.05 if step < len(data) else 0)

    relay = ThreadingHTTPServer(("127.0.0.1", 0), Relay)
    relay.daemon_threads = True
    faults.url = f"http://127.0.0.1:{relay.server_address[1]}"
    threading.Thread(target=relay.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield faults
    finally:
        relay.shutdown()
        relay.server_close()
