"""Rows whose next crash would be their last don't run beside each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from gen_durable import Engine, job

running = most = 0


@job
async def fragile() -> int:
    global running, most
    running += 1
    most = max(most, running)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running -= 1
    return most


async def test_rows_at_their_last_chance_run_one_at_a_time(
    build: Callable[..., Engine], sql: Callable[..., Awaitable[Any]]
) -> None:
    """R25: the row that kills its worker once more takes none with it that only happened to be there; each of these
    waits for a second at most, and not for a poll."""
    global running, most
    running = most = 0
    async with build(fragile, queues={}) as client:
        handles = [inserted.handle for inserted in await client.insert_many([fragile.bind() for _ in range(4)])]
    await sql("UPDATE {s}.instances SET crashes = 4")
    async with build(fragile, poll_interval=60) as engine:
        for handle in handles:
            await engine.result(handle.id, timeout=20)
            assert [t.outcome for t in await engine.history(handle.id)] == ["done"]
            assert (await engine.get(handle.id)).crashes == 4
    assert most == 1
