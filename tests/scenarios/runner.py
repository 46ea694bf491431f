"""Transcripts of one node's election: what it hears on the left, what it does on the right.

A line is ``TIME  EVENT -> EFFECTS [ROLE, may write]``; lines that begin with ``#`` are for people, and ``node`` sets up
the node. ``render`` replays the left sides and returns the whole text with the right sides as they came out, so that a
test is one comparison and a change of behaviour is a diff that reads like a story.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from modelsync.core.election import machine as election
from modelsync.core.election import messages as msg
from modelsync.core.election.candidacy import Eligibility, Rival
from modelsync.core.election.lease import HANDOFF, HELD, NO_LEASE, Authority, LeaseView, Timing
from modelsync.core.election.promise import Promise
from modelsync.core.election.state import State, writing_authority
from modelsync.core.ids import EntryId, NodeId

ARROW = " -> "


def render(text: str) -> str:
    """The transcript as it comes out now."""
    lines, state = [], _node(["b"])
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            lines.append(line)
        elif line.startswith("node "):
            state = _node(line.split()[1:])
            lines.append(line)
        else:
            left = line.split(ARROW)[0].rstrip()
            state, right = _one(state, left)
            lines.append(f"{left:<58}{ARROW}{right}")
    return "\n".join(lines) + "\n"


def _node(words: list[str]) -> State:
    """``node NAME [disk EPOCH HOLDER NONCE] [applied ID]``."""
    options = dict(itertools.pairwise(words))
    disk = None
    if "disk" in words:
        at = words.index("disk")
        disk = Authority(int(words[at + 1]), NodeId(words[at + 2]), words[at + 3])
    return State(
        node=NodeId(words[0]),
        incarnation=words[0].upper(),
        timing=Timing(3.0, 0.25),
        highest=disk.epoch if disk else 0,
        predecessor=disk,
        applied=EntryId.parse(options.get("applied", "0-0")),
    )


def _one(state: State, left: str) -> tuple[State, str]:
    at, *words = left.split()
    now_s = float(at)
    state, effects = election.step(state, _event(state, words, now_s), now_s)
    done = ", ".join(_effect(effect) for effect in effects) or "nothing"
    writes = ", may write" if writing_authority(state, now_s) else ""
    return state, f"{done} [{state.role.value}{writes}]"


# --- events ---------------------------------------------------------------------------------------------------------


def _event(state: State, words: list[str], now_s: float) -> msg.Event:
    return _EVENTS[words[0]](state, words[1:], now_s)


def _lease(words: list[str]) -> LeaseView:
    """``none`` or ``EPOCH HOLDER NONCE SEQ [released | handoff SUCCESSOR]``."""
    if words[0] == "none":
        return NO_LEASE
    epoch, holder, nonce, seq, *rest = words
    successor = rest[1] if rest and rest[0] == HANDOFF else ""
    return LeaseView(int(epoch), holder, nonce, int(seq), rest[0] if rest else HELD, successor)


def _seen(state: State, words: list[str], now_s: float) -> msg.Event:
    accepted = None
    if "accepted" in words:
        at = words.index("accepted")
        accepted = Authority(int(words[at + 1]), NodeId(words[at + 2]), words[at + 3])
        words = words[:at]
    return msg.LeaseRead(_lease(words), accepted)


def _own(state: State) -> Authority:
    return state.authority or Authority(1, state.node, "stale")


def _granted(state: State, words: list[str], now_s: float) -> msg.Event:
    return msg.Granted(int(words[0]), state.claim.nonce if state.claim else "unasked")


def _persisted(state: State, words: list[str], now_s: float) -> msg.Event:
    applied = EntryId.parse(words[2]) if len(words) > 2 else EntryId(0, 0)
    return msg.GrantPersisted(_own(state), frozenset(words[0].split(",")), applied)


def _renewed(state: State, words: list[str], now_s: float) -> msg.Event:
    return msg.Renewed(_own(state), float(words[1]) if words else now_s)


def _promise(state: State, words: list[str], now_s: float) -> msg.Event:
    """``NODE yes HEAD`` or ``NODE no EPOCH HOLDER NONCE``."""
    own = _own(state)
    if words[1] == "yes":
        answer = Promise(words[0], True, own.epoch, own.holder, own.nonce, EntryId.parse(words[2]))
    else:
        answer = Promise(words[0], False, int(words[2]), words[3], words[4], EntryId(0, 0))
    return msg.Promised(own, answer)


def _fitness(state: State, words: list[str], now_s: float) -> msg.Event:
    """``fitness [unfit REASON] [paused] [rivals NAME:HEAD:PRIORITY …]``."""
    rivals = []
    for word in words[words.index("rivals") + 1 :] if "rivals" in words else ():
        name, head, priority = word.split(":")
        rivals.append(Rival(name, EntryId.parse(head), int(priority)))
    reason = words[words.index("unfit") + 1] if "unfit" in words else ""
    return msg.EligibilityChanged(Eligibility(reason, "paused" in words, tuple(rivals)))


_EVENTS: dict[str, Callable[[State, list[str], float], msg.Event]] = {
    "tick": lambda state, words, now_s: msg.Ticked(),
    "lease": _seen,
    "unread": lambda state, words, now_s: msg.ReadFailed(),
    "granted": _granted,
    "refused": lambda state, words, now_s: msg.AcquireRefused(_lease(words)),
    "unanswered": lambda state, words, now_s: msg.AcquireFailed(),
    "persisted": _persisted,
    "unpersisted": lambda state, words, now_s: msg.GrantNotPersisted(_own(state), " ".join(words)),
    "renewed": _renewed,
    "not-renewed": lambda state, words, now_s: msg.RenewRefused(_own(state), _lease(words)),
    "not-reasserted": lambda state, words, now_s: msg.ReassertRefused(_own(state), _lease(words)),
    "no-answer": lambda state, words, now_s: msg.RenewFailed(_own(state)),
    "promise": _promise,
    "silent": lambda state, words, now_s: msg.PeerSilent(_own(state), words[0]),
    "prepared": lambda state, words, now_s: msg.Prepared(_own(state)),
    "unprepared": lambda state, words, now_s: msg.PrepareFailed(_own(state), " ".join(words)),
    "saw": lambda state, words, now_s: msg.EpochSeen(int(words[0]), *words[1:]),
    "fitness": _fitness,
    "release": lambda state, words, now_s: msg.ReleaseAsked(*words),
}


# --- effects --------------------------------------------------------------------------------------------------------


def _effect(effect: msg.Effect) -> str:
    return _EFFECTS[type(effect)](effect)


def _become(effect: msg.BecomePrimary) -> str:
    ahead = f" after fetching {effect.ahead.id} from {','.join(effect.ahead.nodes)}" if effect.ahead else ""
    return f"become primary of {effect.authority.epoch}{ahead}"


_EFFECTS: dict[type, Callable[[Any], str]] = {
    msg.ReadLease: lambda e: "read",
    msg.AcquireLease: lambda e: f"acquire over {e.observed.epoch}:{e.observed.seq}, above {e.min_epoch}, as {e.nonce}",
    msg.PersistGrant: lambda e: f"persist {e.authority.epoch}",
    msg.RenewLease: lambda e: f"renew {e.authority.epoch}:{e.seq}",
    msg.ReassertLease: lambda e: f"reassert {e.authority.epoch}:{e.seq}",
    msg.ReleaseLease: lambda e: f"release {e.authority.epoch}" + (f" to {e.successor}" if e.successor else ""),
    msg.CollectPromises: lambda e: f"collect promises of {','.join(sorted(e.members))}",
    msg.BecomePrimary: _become,
    msg.StepDown: lambda e: f"step down from {e.authority.epoch} ({e.reason})",
    msg.ShowGrant: lambda e: f"show {e.accepted.epoch} of {e.accepted.holder} to {e.holder}",
    msg.RaiseAlarm: lambda e: f"ALARM {e.kind} {e.epoch} {' and '.join(e.holders)}",
}
