"""Two outcomes of one instance in one group, of a claim that was lost and of the one that the same worker has now."""

from __future__ import annotations

import asyncio

from engine_support import LONG, Build, Seen, eventually
from test_births import worker_of

from gen_durable import job

go = asyncio.Event()
began: list[int] = []


@job
async def waits() -> str:
    began.append(1)
    await go.wait()
    return "done"


async def test_the_outcome_of_the_claim_that_was_lost_is_counted_as_stale(build: Build) -> None:
    """R4: also where the worker never heard of the cancel, and has claimed the row a second time."""
    go.clear()
    began.clear()
    async with build(waits) as engine, build(queues={}) as elsewhere:
        worker = worker_of(engine)
        worker.cancelled = lambda instance_id, rev: None  # type: ignore[method-assign]  # the word of it is lost
        commits, stale = Seen(engine, "commit"), Seen(engine, "stale")
        handle = await engine.insert(waits.bind())
        await eventually(lambda: _begun(1))
        await elsewhere.cancel(handle.id)
        await elsewhere.retry(handle.id)
        await eventually(lambda: _begun(2))
        go.set()
        assert await handle.result(timeout=LONG) == "done"
        await worker._flusher.wait_idle()
        assert sum(event.size for event in commits.all) == 1
        assert sum(event.stale for event in commits.all) == 1
        assert [event.id for event in stale.all] == [handle.id]


async def _begun(count: int) -> bool:
    return len(began) == count
