"""Many inside, or one alone, and the one is not starved."""

from __future__ import annotations

import asyncio

from modelsync.runtime.gate import Gate


async def test_many_share_and_one_is_alone() -> None:
    gate, seen = Gate(), []

    async def share(name: str, pause_s: float) -> None:
        async with gate.shared():
            seen.append(f"{name} in")
            await asyncio.sleep(pause_s)
            seen.append(f"{name} out")

    async def alone() -> None:
        async with gate.alone():
            seen.append("alone in")
            await asyncio.sleep(0.02)
            seen.append("alone out")

    async with asyncio.TaskGroup() as group:
        group.create_task(share("a", 0.03))
        group.create_task(share("b", 0.01))
        await asyncio.sleep(0)
        group.create_task(alone())
        await asyncio.sleep(0.001)
        group.create_task(share("late", 0))
    assert seen == ["a in", "b in", "b out", "a out", "alone in", "alone out", "late in", "late out"]


async def test_a_cancelled_guest_leaves_the_gate_empty() -> None:
    gate = Gate()

    async def stay() -> None:
        async with gate.shared():
            await asyncio.sleep(10)

    task = asyncio.create_task(stay())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(1), gate.alone():
        pass
