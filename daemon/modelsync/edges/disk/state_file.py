"""The node's ledger on disk, STATE/state.json: what it must never forget about epochs. PROTOCOL.md section 3.

Every change is fsynced before the method returns, so that a promise outlives the power. A file that cannot be
understood stops the daemon: starting over with an empty ledger would let this node promise an epoch twice.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelsync.core.election.lease import Authority
from modelsync.core.election.promise import grant_refusal
from modelsync.core.errors import BadName, LayoutCorrupt, StaleEpoch
from modelsync.core.ids import MAX_INTEGER, ZERO_ID, EntryId, NodeId, node_id
from modelsync.edges.disk.durable import local_faults, replace_file

FORMAT = 1
MAX_STATE_BYTES = 1 << 20
RECOVERY = (
    "stop this node, put back the file from a backup or move it away, and start the node only while the others run: "
    "they teach it the current epoch"
)


@dataclass(frozen=True, slots=True)
class _Ledger:
    epoch: int = 0
    holder: str = ""
    nonce: str = ""
    applied: EntryId = ZERO_ID
    members: frozenset[str] = frozenset()


class StateFile:
    """``ports.EpochLedger`` over one file. Thread-safe: writers come from worker threads.

    Raises, on construction:
        LayoutCorrupt: the file is not ours, or of a later format. A missing file is an empty ledger.
        DiskFailed: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.Lock()
        self._ledger = _loaded(path)

    @property
    def epoch(self) -> int:
        return self._ledger.epoch

    @property
    def holder(self) -> str:
        return self._ledger.holder

    @property
    def nonce(self) -> str:
        return self._ledger.nonce

    @property
    def applied(self) -> EntryId:
        return self._ledger.applied

    @property
    def members(self) -> frozenset[str]:
        return self._ledger.members

    def accept(self, epoch: int, holder: str, nonce: str) -> None:
        """Remember a grant; the same one again costs nothing.

        Raises:
            StaleEpoch: a higher epoch was accepted, or this one of another holder or nonce. Nothing was written.
            DiskFull, DiskFailed: it is not remembered; the grant must not be answered.
        """
        with self._guard:
            known = self._ledger
            accepted = Authority(known.epoch, NodeId(known.holder), known.nonce) if known.epoch else None
            if grant_refusal(accepted, epoch, holder, nonce) is not None:
                raise StaleEpoch(offered=epoch, accepted=known.epoch)
            self._write(replace(known, epoch=epoch, holder=holder, nonce=nonce))

    def set_applied(self, at: EntryId) -> None:
        """Remember the last catalog change applied; it never goes down. Raises DiskFull, DiskFailed."""
        with self._guard:
            self._write(replace(self._ledger, applied=max(at, self._ledger.applied)))

    def set_members(self, members: Iterable[str]) -> None:
        """Remember who belongs to the fleet. Raises DiskFull, DiskFailed."""
        with self._guard:
            self._write(replace(self._ledger, members=frozenset(members)))

    def _write(self, ledger: _Ledger) -> None:
        if ledger != self._ledger:
            replace_file(self._path, _document(ledger))
            self._ledger = ledger


def _document(ledger: _Ledger) -> bytes:
    document = {
        "format": FORMAT,
        "epoch": ledger.epoch,
        "holder": ledger.holder,
        "nonce": ledger.nonce,
        "applied": str(ledger.applied),
        "members": sorted(ledger.members),
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def _loaded(path: Path) -> _Ledger:
    with local_faults(path, "read"):
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_STATE_BYTES + 1)
        except FileNotFoundError:
            return _Ledger()
    try:
        if len(data) > MAX_STATE_BYTES:
            raise ValueError("it is far too large")
        return _parsed(json.loads(data))
    except (ValueError, BadName, RecursionError) as error:
        raise LayoutCorrupt(path=str(path), reason=f"{error}; {RECOVERY}") from error


def _parsed(document: Any) -> _Ledger:
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")
    if document.get("format") != FORMAT:
        raise ValueError(f"its format is {document.get('format')!r}, this modelsync knows {FORMAT}")
    epoch, members = document.get("epoch"), document.get("members")
    if type(epoch) is not int or not 0 <= epoch <= MAX_INTEGER:
        raise ValueError("epoch is not a whole number below 2^53")
    if not isinstance(members, list):
        raise ValueError("members is not a list")
    holder, nonce = document.get("holder"), document.get("nonce")
    if not isinstance(holder, str) or not isinstance(nonce, str) or bool(holder) != bool(epoch):
        raise ValueError("holder or nonce is not what it should be")
    return _Ledger(
        epoch=epoch,
        holder=node_id(holder) if holder else "",
        nonce=nonce,
        applied=EntryId.parse(document.get("applied")),
        members=frozenset(node_id(member) for member in members),
    )
