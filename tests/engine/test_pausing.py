"""Pausing a queue: claims stop, and so does what runs ahead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gen_durable import Context, Done, Engine, Machine, Next, step


class Walk(Machine):
    n: int = 0

    @step
    async def go(self, ctx: Context) -> Next | Done:
        self.n += 1
        walked.set()
        await asyncio.sleep(0)
        return Done(self.n) if stop.is_set() else Next(self.go)


walked: asyncio.Event
stop: asyncio.Event


async def test_a_chain_that_runs_ahead_stops_at_a_pause_and_goes_on_after_it(build: Callable[..., Engine]) -> None:
    """Section 8: a pause holds in the whole cluster; the step that runs goes on to its end, the next does not start."""
    global walked, stop
    walked, stop = asyncio.Event(), asyncio.Event()
    async with build(Walk) as engine:
        handle = await engine.insert(Walk())
        await walked.wait()
        await engine.pause_queue("default")
        async with asyncio.timeout(10):
            while (await handle.get()).status != "runnable":
                pass
        paused_at = (await handle.get()).rev
        stop.set()
        await engine.resume_queue("default")
        assert await handle.result(timeout=10) > 0
        assert (await handle.get()).rev == paused_at + 2, "one claim and one run since"
