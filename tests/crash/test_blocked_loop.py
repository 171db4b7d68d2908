"""A step that blocks the event loop is a fault of the step's, not a death of the worker's."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

from gen_durable import Engine, job

BLOCKED = 3.0
QUICK = {"lease": 1.2, "heartbeat": 0.4}

runs: list[float] = []


@job(queue="blocking")
async def block() -> str:
    runs.append(time.monotonic())
    time.sleep(BLOCKED)  # the point of the test: nothing else runs on this loop
    return "done"


async def test_a_worker_whose_loop_is_blocked_past_its_lease_keeps_its_claims(
    database_url: str, migrated: str, caplog: pytest.LogCaptureFixture
) -> None:
    """R25: alive is who has a living process; the step runs once, and the log says where the loop stands."""
    runs.clear()
    blocked = Engine(database_url, machines=[block], schema=migrated, name="blocked", queues={"blocking": 1}, **QUICK)
    reaped: list[object] = []

    async def work() -> tuple[str, int]:
        async with blocked:
            handle = await blocked.insert(block.bind())
            result = await handle.result(timeout=30)
            return result, (await handle.get()).attempt

    outcome: list[tuple[str, int]] = []
    # A thread with a loop of its own: the blocked worker; the other worker, which looks for the dead, is here.
    thread = threading.Thread(target=lambda: outcome.append(asyncio.run(work())))
    with caplog.at_level(logging.WARNING, "gen_durable"):
        async with Engine(database_url, schema=migrated, name="reaper", queues={"other": 1}, **QUICK) as other:
            other.on("worker_dead", reaped.append)
            other.on("reaped", reaped.append)
            thread.start()
            await asyncio.to_thread(thread.join)
    assert outcome == [("done", 0)]
    assert len(runs) == 1
    assert reaped == []
    assert "time.sleep(BLOCKED)" in caplog.text
