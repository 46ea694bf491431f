"""The tables of ``[model.NAME]`` that say how a version is checked and who is told of it.

This file decides which keys a check, a health probe and a hook have, and which of them belong to which kind.
"""

from __future__ import annotations

import signal
from typing import Literal, cast

from modelsync.config.reading import Section
from modelsync.core.gates import Check, Health
from modelsync.core.hooks import KINDS, VIEW_KINDS, Hook

MAX_HOOKS = 32
_NEEDS = {
    "triton": ("url",),
    "tfserving": ("url",),
    "mlserver": ("url",),
    "vllm": ("url",),
    "sglang": ("url",),
    "url": ("url",),
    "command": ("command",),
    "systemctl": ("unit",),
    "signal": ("pid_file",),
}
_MAY = {
    "triton": ("name",),
    "tfserving": ("name",),
    "mlserver": ("name",),
    "vllm": ("name",),
    "sglang": (),
    "url": ("method", "body"),
    "command": (),
    "systemctl": (),
    "signal": ("signal",),
}


def check(owner: Section) -> Check:
    """``validate = { … }``"""
    table = _table(owner, "validate")
    default = Check()
    made = Check(
        check=cast(
            Literal["none", "structure", "load"], table.choice("check", default.check, ("none", "structure", "load"))
        ),
        inputs=table.text("inputs", ""),
        expected=table.text("expected", ""),
        tolerance=table.number("tolerance", default.tolerance, 0, 1e9),
        command=_command(table),
        timeout_s=table.number("timeout_s", default.timeout_s, 0.1, 86_400),
        memory_bytes=table.whole("memory_bytes", default.memory_bytes, 64 << 20, 1 << 50),
    )
    if made.inputs and made.check != "load":
        table.fault("inputs", 'is only used with check = "load"')
    if made.expected and not made.inputs:
        table.fault("expected", "needs inputs beside it")
    table.finish()
    return made


def health(owner: Section) -> Health:
    """``health = { … }``"""
    table = _table(owner, "health")
    default = Health()
    made = Health(
        url=_url(table),
        command=_command(table),
        ready_s=table.number("ready_s", default.ready_s, 0.1, 86_400),
        window_s=table.number("window_s", default.window_s, 0, 86_400),
        interval_s=table.number("interval_s", default.interval_s, 0.05, 3600),
        failures=table.whole("failures", default.failures, 1, 1000),
    )
    if made.url and made.command:
        table.fault("command", "stands beside url; one of them would be right")
    table.finish()
    return made


def hooks(owner: Section) -> tuple[Hook, ...]:
    """``hooks = [ { kind = … }, … ]``"""
    value = owner.raw("hooks")
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_HOOKS:
        owner.fault("hooks", f"is not a list of at most {MAX_HOOKS} tables, each with a kind")
        return ()
    return tuple(_hook(Section(owner.faults, (*owner.keys, "hooks", str(at)), item)) for at, item in enumerate(value))


def _hook(table: Section) -> Hook:
    kind = table.choice("kind", "url", KINDS)
    default = Hook(kind)
    made = Hook(
        kind=kind,
        url=_url(table),
        method=table.choice("method", default.method, ("POST", "GET", "PUT", "PATCH", "DELETE")),
        body=table.text("body", ""),
        name=table.text("name", ""),
        command=_command(table),
        unit=table.text("unit", ""),
        pid_file=str(table.path("pid_file", None) or ""),
        signal=table.choice("signal", default.signal, ("HUP", "USR1", "USR2", "TERM", "INT")),
        timeout_s=table.number("timeout_s", default.timeout_s, 0.1, 3600),
    )
    assert made.signal in {member.name.removeprefix("SIG") for member in signal.Signals}
    known = {"kind", "timeout_s", *_NEEDS[kind], *_MAY[kind]}
    for key in _NEEDS[kind]:
        if not table.given(key):
            table.fault(key, f'is missing; a hook of kind "{kind}" needs it')
    for key in table.names():
        if key not in known:
            table.fault(key, f'does not belong to a hook of kind "{kind}"; here are known: {", ".join(sorted(known))}')
    return made


def views(owner: Section) -> tuple[str, ...]:
    """``views = ["triton"]``"""
    found = owner.patterns("views", ())
    for kind in found:
        if kind not in VIEW_KINDS:
            owner.fault("views", f"names {kind[:40]!r}; {', '.join(VIEW_KINDS)} would be right")
    return tuple(kind for kind in VIEW_KINDS if kind in found)


def _table(owner: Section, key: str) -> Section:
    return Section(owner.faults, (*owner.keys, key), owner.raw(key))


def _command(table: Section) -> tuple[str, ...]:
    right = 'a list of words, such as ["/usr/local/bin/check", "--fast"],'
    value = table.raw("command")
    if value is None:
        return ()
    if not isinstance(value, list) or not value or not all(isinstance(word, str) and word for word in value):
        table.fault("command", f"is not a list of texts; {right} would be right")
        return ()
    if not value[0].startswith("/") or any("\0" in word for word in value):
        table.fault("command", "does not begin with an absolute path")
        return ()
    return tuple(value)


def _url(table: Section) -> str:
    value = table.text("url", "")
    if value and not value.startswith(("http://", "https://")):
        table.fault("url", "is not http://… or https://…")
        return ""
    return value
