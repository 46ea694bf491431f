"""Stand-ins for inference servers that no registry has: they load what a real one would, and answer as it does.

Each remembers what it was asked and says what it serves, which it has read from disk itself. Weights that begin with
``bad`` cannot be loaded. What is imitated stands beside each class, with its source.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


class CannotLoad(Exception):
    """The weights are no good."""


def weights_of(directory: Path) -> bytes:
    """The only weights' file of a version."""
    (path,) = (p for p in directory.iterdir() if p.suffix == ".bin")
    data = path.read_bytes()
    if data.startswith(b"bad"):
        raise CannotLoad(f"{path.name} is no model")
    return data


class ModelServer:
    """An HTTP server on a free port; a subclass answers ``respond``."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """Method and path of each request, in order."""
        self.serving: bytes | None = None
        self.guard = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.asked.append(f"{self.command} {self.path}")
                with outer.guard:
                    status, value = outer.respond(self.command, self.path, body)
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *arguments: Any) -> None:
                """Quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def respond(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        raise NotImplementedError

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Triton(ModelServer):
    """``--model-control-mode=explicit``. Source: its guide, "Model Management" and "Model Repository Extension".

    Directories that begin with a number are versions, ``7.tmp`` too; a link that leads nowhere fails the whole listing;
    a model whose newest time is not later than when it was loaded is not loaded again, and the answer is 200 all the
    same; a load that fails leaves what is loaded.
    """

    def __init__(self, repository: Path) -> None:
        super().__init__()
        self.repository = repository
        self._loaded: dict[str, tuple[int, int]] = {}
        """Version, and the newest time of its files when it was loaded."""
        self.stale_loads = 0
        self.listings: list[list[int]] = []

    def respond(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if load := re.fullmatch(r"/v2/repository/models/([^/]+)/load", path):
            return self._load(load[1])
        if path == "/v2/repository/index":
            lines = [(name, number) for name, (number, _) in self._loaded.items()]
            return 200, [{"name": n, "version": str(v), "state": "READY", "reason": ""} for n, v in lines]
        if ready := re.fullmatch(r"/v2/models/([^/]+)/versions/(\d+)/ready", path):
            return (200 if self._loaded.get(ready[1], (0, 0))[0] == int(ready[2]) else 400), b""
        return 404, {"error": "no such route"}

    def _load(self, name: str) -> tuple[int, Any]:
        directory = self.repository / name
        try:
            listed = [entry for entry in directory.iterdir() if re.match(r"\d+", entry.name)]
            times = [entry.stat().st_mtime_ns for entry in (directory / "config.pbtxt", *listed)]
            self.listings.append(sorted(int(re.match(r"\d+", entry.name)[0]) for entry in listed))  # type: ignore[index]
            if name in self._loaded and max(times) <= self._loaded[name][1]:
                self.stale_loads += 1
                return 200, b""
            config = (directory / "config.pbtxt").read_text()
            number = int(re.findall(r"versions: \[ (\d+) \]", config)[0])
            self.serving = weights_of(directory / str(number))
        except (OSError, CannotLoad, IndexError) as error:
            return 400, {"error": f"failed to load '{name}': {error}"}
        self._loaded[name] = (number, max(times))
        return 200, b""


class TensorFlowServing(ModelServer):
    """With ``--model_config_file_poll_wait_seconds``; the REST model status. Source: its guides "TensorFlow Serving
    Configuration" and "RESTful API". A version that cannot be loaded ends in state END with an error."""

    def __init__(self, config: Path) -> None:
        super().__init__()
        self._config = config
        self._states: dict[str, dict[str, Any]] = {}
        self._stop = threading.Event()
        threading.Thread(target=self._poll, daemon=True).start()

    def _poll(self) -> None:
        seen = ""
        while not self._stop.wait(0.05):
            try:
                text = self._config.read_text()
            except OSError:
                continue
            if text != seen:
                seen = text
                with self.guard:
                    self._follow(text)

    def _follow(self, text: str) -> None:
        base = re.findall(r'base_path: "([^"]+)"', text)
        numbers = re.findall(r"versions: (\d+)", text)
        if not base or not numbers:
            return
        state, status = "AVAILABLE", {"error_code": "OK", "error_message": ""}
        try:
            assert all(entry.name.isdigit() and entry.exists() for entry in Path(base[0]).iterdir())
            self.serving = weights_of(Path(base[0]) / numbers[0])
        except (OSError, CannotLoad) as error:
            state, status = "END", {"error_code": "INVALID_ARGUMENT", "error_message": str(error)}
        self._states[numbers[0]] = {"version": numbers[0], "state": state, "status": status}

    def respond(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        asked = re.fullmatch(r"/v1/models/[^/]+/versions/(\d+)", path)
        if asked is None or asked[1] not in self._states:
            return 404, {"error": "Servable not found for request"}
        return 200, {"model_version_status": [self._states[asked[1]]]}

    def close(self) -> None:
        self._stop.set()
        super().close()


class Vllm(ModelServer):
    """``VLLM_SERVER_DEV_MODE=1 vllm serve PATH --enable-sleep-mode``, and ``--enable-lora``. Source: its pages "Sleep
    Mode" (the order of the four calls of level 2) and "LoRA Adapters" (a name that is loaded needs ``load_inplace``).
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.asleep: set[str] = set()
        self.adapters: dict[str, bytes] = {}

    def respond(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        query = parse_qs(urlsplit(path).query)
        route = urlsplit(path).path
        if route == "/sleep" and query["level"] == ["2"]:
            self.asleep, self.serving = {"weights", "kv_cache"}, None
            return 200, b""
        if route == "/wake_up":
            self.asleep -= set(query["tags"])
            return 200, b""
        if route == "/collective_rpc":
            return self._reload(json.loads(body))
        if route == "/v1/load_lora_adapter":
            return self._adapter(json.loads(body))
        return (200, b"") if route == "/health" else (404, {"detail": "Not Found"})

    def _reload(self, call: dict[str, Any]) -> tuple[int, Any]:
        if call != {"method": "reload_weights"} or "weights" in self.asleep:
            return 500, {"error": "the weights' memory is not there"}
        try:
            self.serving = weights_of(self._path)
        except (OSError, CannotLoad) as error:
            return 500, {"error": str(error)}
        return 200, {"results": [None]}

    def _adapter(self, call: dict[str, Any]) -> tuple[int, Any]:
        name = call["lora_name"]
        if name in self.adapters and call.get("load_inplace") is not True:
            return 400, {"error": f"The lora adapter '{name}' has already been loaded."}
        try:
            self.adapters[name] = self.serving = weights_of(Path(call["lora_path"]))
        except (OSError, CannotLoad) as error:
            return 400, {"error": str(error)}
        return 200, f"Success: LoRA adapter '{name}' added successfully.".encode()


class Sglang(ModelServer):
    """``POST /update_weights_from_disk``: 200 or 400 with ``success`` in the body. Source: "SGLang Native APIs"."""

    def respond(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/health":
            return 200, b""
        if path != "/update_weights_from_disk":
            return 404, {"detail": "Not Found"}
        call = json.loads(body)
        try:
            self.serving = weights_of(Path(call["model_path"]))
        except (OSError, CannotLoad) as error:
            return 400, {"success": False, "message": f"Failed to update weights: {error}"}
        return 200, {"success": True, "message": "Succeeded to update model weights."}


class AnyServer(ModelServer):
    """Something of one's own: is told a path, and takes a while until it is ready."""

    def __init__(self) -> None:
        super().__init__()
        self.ready_s = 0.0

    def respond(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if method == "PUT" and path.startswith("/models/"):
            try:
                self.serving = weights_of(Path(json.loads(body)["from"]))
            except (OSError, CannotLoad) as error:
                return 422, {"why": str(error)}
            self.ready_s = time.monotonic() + 0.3
            return 202, {}
        return (200 if time.monotonic() >= self.ready_s else 503), b""
