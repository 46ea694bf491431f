"""What stands between a version and its use on one host, and what follows when it does not pass.

This file alone decides when a rejected version may be tried again and what a series of health probes means. How a
model is checked or a server asked, the edges know. Time is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from modelsync.core import canonical
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import BadName, MalformedMessage
from modelsync.core.hooks import Hook
from modelsync.core.ids import Digest, EntryId, ModelName, Version, model_name, version

MAX_REASON_CHARS = 1000
"""Of a validator's last words: enough for a traceback's end, and a node's report stays small."""
MAX_REJECTIONS = 50
"""Kept of one model; the oldest go first."""

# --- what is asked of a version ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """Before the swap: how a version is looked at. All of it runs in a cage, never in the daemon."""

    check: Literal["none", "structure", "load"] = "none"
    """``structure``: the files' formats, nothing of theirs is run; ``load``: loaded as an application would."""
    inputs: str = ""
    """Sample inputs for ``load``: a path within the version or an absolute one; ``.npy`` or ``.json``."""
    expected: str = ""
    """What the model must answer to them."""
    tolerance: float = 1e-6
    """Relative and absolute, for each number."""
    command: tuple[str, ...] = ()
    """The operator's own: it finds the version in ``MODELSYNC_TREE``, and ends with 0 where it is good."""
    timeout_s: float = 60.0
    memory_bytes: int = 4 << 30

    @property
    def empty(self) -> bool:
        return self.check == "none" and not self.command


@dataclass(frozen=True, slots=True)
class Health:
    """After the swap: what says that the servers are well with it."""

    url: str = ""
    """Answers 200."""
    command: tuple[str, ...] = ()
    """Ends with 0."""
    ready_s: float = 30.0
    """It has to be well within this time."""
    window_s: float = 0.0
    """And to stay well for this long."""
    interval_s: float = 0.25
    failures: int = 2
    """Probes in a row that end the window: one lost answer is no verdict."""

    @property
    def empty(self) -> bool:
        return not self.url and not self.command


@dataclass(frozen=True, slots=True)
class ModelGates:
    """All that stands around one model's swap on this host."""

    check: Check = field(default_factory=Check)
    health: Health = field(default_factory=Health)
    hooks: tuple[Hook, ...] = ()
    views: tuple[str, ...] = ()

    @property
    def tells(self) -> bool:
        """Whether anything is to be done after the swap."""
        return bool(self.hooks or self.views) or not self.health.empty


# --- the health window ------------------------------------------------------------------------------------------------

Verdict = Literal["going on", "healthy", "failed"]


@dataclass(frozen=True, slots=True)
class Window:
    """One version's trial after the swap. ``ready_at_s`` None: the servers have not been well yet."""

    began_s: float
    ready_at_s: float | None = None
    failed_in_a_row: int = 0
    reason: str = ""
    verdict: Verdict = "going on"


def probed(window: Window, health: Health, fault: str | None, now_s: float) -> Window:
    """The window after one probe. ``fault``: None where it answered well; ``now_s``: this host's boot time."""
    if window.verdict != "going on":
        return window
    if fault is None:
        ready_at_s = now_s if window.ready_at_s is None else window.ready_at_s
        verdict: Verdict = "healthy" if now_s - ready_at_s >= health.window_s else "going on"
        return replace(window, ready_at_s=ready_at_s, failed_in_a_row=0, verdict=verdict)
    failed = replace(window, failed_in_a_row=window.failed_in_a_row + 1, reason=fault)
    if window.ready_at_s is None:
        late = now_s - window.began_s >= health.ready_s
        why = f"not ready within {health.ready_s:g} s: {fault}"
    else:
        late = failed.failed_in_a_row >= health.failures
        why = f"unhealthy {now_s - window.ready_at_s:.1f} s after it was ready: {fault}"
    return replace(failed, verdict="failed", reason=why) if late else failed


# --- rejections -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rejection:
    """A version that this host will not run by itself again."""

    model: ModelName
    version: Version
    digest: Digest
    gate: str
    reason: str
    at_ms: int
    asked: EntryId
    """The last time, then, that somebody asked for this version."""
    node_pin: str = ""
    """This host's own pin of the model, then; empty for none."""


def asked_for(record: ModelRecord, number: Version) -> EntryId:
    """When somebody last asked for a version: its publish, or the last command that chose it."""
    published = record.versions[number].id if number in record.versions else EntryId(0, 0)
    return max([published, *(change.id for change in record.changes if change.wanted == number and change.chooses)])


def still_rejected(rejection: Rejection, record: ModelRecord, node_pin: int | str | None) -> bool:
    """Whether a rejection stands: until somebody asks for the version again, or pins this host to it anew."""
    pin = "" if node_pin is None else str(node_pin)
    pinned_anew = bool(pin) and pin != rejection.node_pin
    return not pinned_anew and asked_for(record, rejection.version) <= rejection.asked


def shortened(reason: str, most_chars: int = MAX_REASON_CHARS) -> str:
    """What a validator said, fit for a report: how it ended stands first, and the error last."""
    text = " ".join("".join(char if char.isprintable() else " " for char in reason).split())
    head = most_chars // 3
    return text if len(text) <= most_chars else f"{text[:head]} … {text[head - most_chars :]}"


def to_json(rejections: list[Rejection]) -> bytes:
    """The file STATE/rejected/NAME.json; the newest last."""
    return canonical.encode(
        [
            {
                "model": item.model,
                "version": item.version,
                "digest": str(item.digest),
                "gate": item.gate,
                "reason": item.reason,
                "at_ms": item.at_ms,
                "asked": str(item.asked),
                "node_pin": item.node_pin,
            }
            for item in rejections[-MAX_REJECTIONS:]
        ]
    )


def from_json(data: bytes) -> list[Rejection]:
    """Parse what ``to_json`` wrote. Raises MalformedMessage."""
    value = canonical.decode(data, "rejections", max_bytes=1 << 20)
    try:
        return [
            Rejection(
                model=model_name(item["model"]),
                version=version(item["version"]),
                digest=Digest.parse(item["digest"]),
                gate=str(item["gate"]),
                reason=str(item["reason"]),
                at_ms=int(item["at_ms"]),
                asked=EntryId.parse(item["asked"]),
                node_pin=str(item["node_pin"]),
            )
            for item in value
        ]
    except (BadName, KeyError, TypeError, ValueError) as error:
        raise MalformedMessage(what="rejections", reason=str(error)) from error
