"""How each kind of inference server is told of a version: the requests that follow from a hook, in order.

Pure: what is sent where, and which answer counts. Sending is the edges'. Each server's way stands beside its function.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

KINDS = ("triton", "tfserving", "mlserver", "vllm", "sglang", "url", "command", "systemctl", "signal")
VIEW_KINDS = ("triton", "tfs", "mlserver")


@dataclass(frozen=True, slots=True)
class Hook:
    """One ``[[model.NAME.hooks]]`` table. Which fields matter, its kind says."""

    kind: str
    url: str = ""
    """Of the server, for the kinds that are servers; the whole address for ``url``."""
    method: str = "POST"
    body: str = ""
    """For ``url``: what is sent, with ``{model}``, ``{version}``, ``{digest}`` and ``{tree}`` filled in."""
    name: str = ""
    """What the server calls the model; by default the model's own name. For ``vllm``: the adapter's."""
    command: tuple[str, ...] = ()
    unit: str = ""
    pid_file: str = ""
    signal: str = "HUP"
    timeout_s: float = 30.0

    def __str__(self) -> str:
        return f"hook {self.kind} {self.url or self.unit or self.pid_file or ' '.join(self.command)}".rstrip()


@dataclass(frozen=True, slots=True)
class Told:
    """What a hook tells: the version's identity and where it lies."""

    model: str
    version: int
    digest: str
    tree: str

    def filled(self, text: str) -> str:
        """A text with the version's fields in place of their names in braces; other braces stay as they are."""
        for key in ("model", "version", "digest", "tree"):
            text = text.replace("{" + key + "}", str(getattr(self, key)))
        return text


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. ``until``: it is repeated within the hook's time until its answer satisfies ``satisfied``."""

    method: str
    url: str
    body: bytes = b""
    content_type: str = "application/json"
    expect: str = "success"
    """``success``: any 2xx; the others are named in ``satisfied``."""
    repeat: bool = False


def requests(hook: Hook, told: Told) -> tuple[Request, ...]:
    """What to send, in order. Kinds that are no HTTP servers have none."""
    made = {
        "triton": _triton,
        "tfserving": _tfserving,
        "mlserver": _mlserver,
        "vllm": _vllm,
        "sglang": _sglang,
        "url": _url,
    }.get(hook.kind)
    return made(hook, told) if made else ()


def _base(hook: Hook) -> str:
    return hook.url.rstrip("/")


def _name(hook: Hook, told: Told) -> str:
    return quote(hook.name or told.model, safe="")


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _triton(hook: Hook, told: Told) -> tuple[Request, ...]:
    """Explicit control mode: load (which rereads config.pbtxt, whose policy names the version), then the version's own
    readiness, since a load may answer 200 and leave another version serving."""
    root = f"{_base(hook)}/v2"
    load = Request("POST", f"{root}/repository/models/{_name(hook, told)}/load", b"{}")
    index = Request("POST", f"{root}/repository/index", b"{}", expect=f"index:{hook.name or told.model}:{told.version}")
    ready = Request("GET", f"{root}/models/{_name(hook, told)}/versions/{told.version}/ready", repeat=True)
    return load, index, ready


def _tfserving(hook: Hook, told: Told) -> tuple[Request, ...]:
    """It polls its model config file, which the view has just replaced; its status says when the version serves."""
    url = f"{_base(hook)}/v1/models/{_name(hook, told)}/versions/{told.version}"
    return (Request("GET", url, expect="tfs", repeat=True),)


def _mlserver(hook: Hook, told: Told) -> tuple[Request, ...]:
    """Load rereads model-settings.json and replaces the model in place; the model's readiness follows."""
    root = f"{_base(hook)}/v2"
    load = Request("POST", f"{root}/repository/models/{_name(hook, told)}/load")
    return load, Request("GET", f"{root}/models/{_name(hook, told)}/ready", repeat=True)


def _vllm(hook: Hook, told: Told) -> tuple[Request, ...]:
    """With ``name``: a LoRA adapter is loaded in place. Without: the weights are let go, read again from the path that
    the server was started with (LIVE/NAME/current), and it wakes up; that needs its sleep mode."""
    root = _base(hook)
    health = Request("GET", f"{root}/health", repeat=True)
    if hook.name:
        body = _json({"lora_name": hook.name, "lora_path": told.tree, "load_inplace": True})
        return Request("POST", f"{root}/v1/load_lora_adapter", body), health
    return (
        Request("POST", f"{root}/sleep?level=2"),
        Request("POST", f"{root}/wake_up?tags=weights"),
        Request("POST", f"{root}/collective_rpc", _json({"method": "reload_weights"})),
        Request("POST", f"{root}/wake_up?tags=kv_cache"),
        health,
    )


def _sglang(hook: Hook, told: Told) -> tuple[Request, ...]:
    """It answers 200 or 400 with ``success`` in the body; both are looked at."""
    root = _base(hook)
    body = _json({"model_path": told.tree, "flush_cache": True})
    update = Request("POST", f"{root}/update_weights_from_disk", body, expect="json-success")
    return update, Request("GET", f"{root}/health", repeat=True)


def _url(hook: Hook, told: Told) -> tuple[Request, ...]:
    body = told.filled(hook.body).encode()
    kind = "application/json" if body[:1] in (b"{", b"[") else "text/plain; charset=utf-8"
    return (Request(hook.method, told.filled(hook.url), body, kind),)


def satisfied(request: Request, status: int, data: bytes) -> str | None:
    """What is wrong with an answer; None where it is what the request asked for."""
    if not 200 <= status < 300:
        return f"answered {status}: {data[:200].decode(errors='replace')}"
    if request.expect == "success":
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return "answered no JSON"
    if request.expect == "json-success":
        good = isinstance(value, dict) and value.get("success") is True
        return None if good else f"answered {data[:200].decode(errors='replace')}"
    if request.expect == "tfs":
        return _tfs_fault(value)
    return _index_fault(value, *request.expect.split(":")[1:])


def is_final(request: Request, data: bytes) -> bool:
    """Whether an answer that does not satisfy will not get better: TensorFlow Serving tried to load it and failed."""
    try:
        lines = _tfs_lines(json.loads(data)) if request.expect == "tfs" else []
    except (ValueError, RecursionError):
        return False
    return any(line.get("state") == "END" and _tfs_error(line) for line in lines)


def _tfs_lines(value: Any) -> list[dict[str, Any]]:
    lines = value.get("model_version_status") if isinstance(value, dict) else None
    return [line for line in lines if isinstance(line, dict)] if isinstance(lines, list) else []


def _tfs_error(line: dict[str, Any]) -> str:
    status = line.get("status")
    return str(status.get("error_message") or "")[:200] if isinstance(status, dict) else ""


def _tfs_fault(value: Any) -> str | None:
    lines = _tfs_lines(value)
    states = [line.get("state") for line in lines]
    if "AVAILABLE" in states:
        return None
    errors = "; ".join(filter(None, map(_tfs_error, lines)))
    return f"the version's state is {states or 'unknown'}" + (f": {errors}" if errors else "")


def _index_fault(value: Any, name: str, number: str) -> str | None:
    """A repository's index: a version that is listed must be ready; one that a server does not list is asked next."""
    lines = [line for line in value if isinstance(line, dict)] if isinstance(value, list) else []
    for line in lines:
        if line.get("name") == name and str(line.get("version", "")) == number and line.get("state") != "READY":
            return f"the index says {line.get('state')}: {str(line.get('reason', ''))[:200]}"
    return None
