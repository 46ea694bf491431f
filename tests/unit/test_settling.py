"""Writes whose answer was lost: what is still believed possible, over every order of answers."""

from __future__ import annotations

from typing import Any

import pytest

from modelsync.core.errors import CatalogBehind, LeaseLost, ModelsyncError, RedisUnavailable, StaleEpoch
from modelsync.core.ids import EntryId, NodeId
from modelsync.ports import Authority, Change
from modelsync.runtime import appending
from modelsync.runtime.appending import Appending

AUTHORITY = Authority(3, NodeId("a"), "n")
CHANGE = Change(EntryId(3, 7), "m", None, None, {}, {}, (), "")
LOST = RedisUnavailable(operation="publish", reason="no answer")
NO_LEASE = LeaseLost(epoch=3, holder="none")


class Answers:
    """A catalog that gives these, one after another."""

    def __init__(self, *answers: ModelsyncError | None) -> None:
        self.left = list(answers)

    async def append(self, authority: Authority, change: Change) -> None:
        answer = self.left.pop(0)
        if answer is not None:
            raise answer


async def outcome(*answers: ModelsyncError | None) -> tuple[bool, type[BaseException] | None]:
    """Whether the change may still stand in the log, and what the caller is told."""
    catalog: Any = Answers(*answers)
    log = Appending(catalog, lambda *_: None)
    try:
        await log.append(AUTHORITY, CHANGE)
    except ModelsyncError as error:
        return log.unsettled is CHANGE, type(error)
    return log.unsettled is CHANGE, None


@pytest.mark.parametrize(
    ("answers", "unsettled", "told"),
    [
        ((None,), False, None),
        ((LOST, None), False, None),
        ((NO_LEASE,), False, LeaseLost),
        ((LOST, NO_LEASE), True, LeaseLost),  # the first try may have been executed before the lease went
        ((LOST, LOST, NO_LEASE), True, LeaseLost),
        ((LOST, CatalogBehind(after="3-6")), False, CatalogBehind),  # the log's end is another entry: it is not there
        ((LOST, StaleEpoch(offered=3, accepted=4)), False, StaleEpoch),
        ((LOST,) * appending.SETTLE_TRIES, True, RedisUnavailable),
    ],
)
async def test_what_may_still_stand_in_the_log(
    answers: tuple[ModelsyncError | None, ...],
    unsettled: bool,
    told: type[BaseException] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(appending, "SETTLE_PAUSE_S", 0)
    assert await outcome(*answers) == (unsettled, told)


async def test_what_was_lost_is_sent_again_unchanged_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "SETTLE_PAUSE_S", 0)
    catalog: Any = Answers(*(LOST,) * appending.SETTLE_TRIES, None)
    log = Appending(catalog, lambda *_: None)
    with pytest.raises(RedisUnavailable):
        await log.append(AUTHORITY, CHANGE)
    await log.settle(AUTHORITY)
    assert catalog.left == [] and log.unsettled is None


async def test_what_was_lost_in_an_earlier_epoch_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "SETTLE_PAUSE_S", 0)
    catalog: Any = Answers(*(LOST,) * appending.SETTLE_TRIES)
    log = Appending(catalog, lambda *_: None)
    with pytest.raises(RedisUnavailable):
        await log.append(AUTHORITY, CHANGE)
    await log.settle(Authority(4, NodeId("a"), "n"))  # would find no answer left
    assert log.unsettled is None
