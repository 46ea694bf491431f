"""The node's ledger on disk: what it refuses, what it survives, and what it never forgets."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from modelsync.core.errors import DiskFailed, DiskFull, LayoutCorrupt, StaleEpoch
from modelsync.core.ids import ZERO_ID, EntryId
from modelsync.edges.disk import durable
from modelsync.edges.disk.state_file import StateFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "state.json"


def test_a_missing_file_is_an_empty_ledger_and_is_not_written(path: Path) -> None:
    ledger = StateFile(path)
    assert (ledger.epoch, ledger.holder, ledger.nonce, ledger.applied) == (0, "", "", ZERO_ID)
    assert ledger.members == frozenset() and not path.exists()


def test_everything_is_there_for_the_next_process(path: Path) -> None:
    ledger = StateFile(path)
    ledger.accept(7, "gpu-01", "n.3")
    ledger.set_applied(EntryId(7, 42))
    ledger.set_members({"gpu-01", "gpu-02"})
    again = StateFile(path)
    assert (again.epoch, again.holder, again.nonce) == (7, "gpu-01", "n.3")
    assert again.applied == EntryId(7, 42) and again.members == {"gpu-01", "gpu-02"}


@pytest.mark.parametrize("grant", [(4, "a", "n"), (5, "b", "n"), (5, "a", "m"), (0, "a", "n")])
def test_a_lower_epoch_or_another_grant_of_the_same_is_refused_and_not_written(
    path: Path, grant: tuple[int, str, str]
) -> None:
    ledger = StateFile(path)
    ledger.accept(5, "a", "n")
    before = path.read_bytes()
    with pytest.raises(StaleEpoch):
        ledger.accept(*grant)
    assert path.read_bytes() == before
    ledger.accept(5, "a", "n")
    ledger.accept(6, "b", "m")
    assert StateFile(path).epoch == 6


def test_the_same_again_costs_no_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = StateFile(path)
    ledger.accept(5, "a", "n")
    ledger.set_applied(EntryId(5, 1))
    monkeypatch.setattr("modelsync.edges.disk.state_file.replace_file", pytest.fail)
    ledger.accept(5, "a", "n")
    ledger.set_applied(EntryId(5, 1))
    ledger.set_applied(EntryId(4, 9))
    ledger.set_members(())
    assert ledger.applied == EntryId(5, 1)


@pytest.mark.parametrize("error", [DiskFull(path="x"), DiskFailed(path="x", operation="replace", errno_name="EIO")])
def test_what_did_not_reach_the_disk_was_not_promised(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: DiskFull | DiskFailed
) -> None:
    ledger = StateFile(path)
    ledger.accept(5, "a", "n")

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr("modelsync.edges.disk.state_file.replace_file", fail)
        with pytest.raises(type(error)):
            ledger.accept(6, "b", "m")
        assert (ledger.epoch, ledger.holder) == (5, "a")
    ledger.accept(6, "c", "k")
    assert StateFile(path).holder == "c"


def test_a_promise_is_fsynced_before_the_call_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = StateFile(path)
    ledger.accept(1, "a", "n")
    calls: list[str] = []
    for name in ("fsync", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(durable.os, name, lambda *args, n=name, f=real: (calls.append(n), f(*args))[1])
    ledger.accept(2, "b", "m")
    assert calls == ["fsync", "rename", "fsync"]


GOOD = {"format": 1, "epoch": 3, "holder": "a", "nonce": "n", "applied": "3-4", "members": ["a"]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 200,
        b"{",
        b"[]",
        b'{"format": 1}',
        b"[" * 100_000,
        b" " * (2 << 20),
        *(
            json.dumps(GOOD | change).encode()
            for change in (
                {"format": 2},
                {"format": "1"},
                {"epoch": -1},
                {"epoch": 2**53},
                {"epoch": True},
                {"epoch": 3.0},
                {"epoch": 0},
                {"holder": ""},
                {"holder": "../a"},
                {"nonce": 5},
                {"applied": "3"},
                {"applied": "3-99999999999999999999"},
                {"members": "a"},
                {"members": ["a", "/etc"]},
            )
        ),
    ],
    ids=lambda data: data[:40].decode(errors="replace"),
)
def test_a_file_that_cannot_be_understood_is_never_taken_for_an_empty_one(path: Path, data: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(LayoutCorrupt, match="backup"):
        StateFile(path)
    assert path.read_bytes() == data


def test_threads_do_not_lose_each_others_changes(path: Path) -> None:
    ledger = StateFile(path)
    threads = [
        threading.Thread(target=lambda: [ledger.set_applied(EntryId(1, seq)) for seq in range(30)]),
        threading.Thread(target=lambda: [ledger.accept(epoch, "a", "n") for epoch in range(1, 31)]),
        threading.Thread(target=lambda: [ledger.set_members([f"n{n}"]) for n in range(30)]),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = StateFile(path)
    assert (again.epoch, again.applied, again.members) == (30, EntryId(1, 29), {"n29"})
