"""``testing.drain`` and what waits: for signals, for children, for the end of a timeout; and what is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from gen_durable import (
    Await,
    Backoff,
    Context,
    Done,
    Engine,
    Machine,
    Sleep,
    Spawn,
    child,
    job,
    step,
    testing,
)

Build = Callable[..., Engine]


@job
async def tick() -> None:
    pass


class Checkout(Machine):
    order: int

    @step
    async def start(self, ctx: Context) -> Await:
        return Await("paid", then=self.ship, timeout=3600)

    @step
    async def ship(self, ctx: Context) -> Done:
        return Done("too late" if ctx.timed_out else ctx.awaited[0].payload)


@job(queue="parts", retry=Backoff(max_attempts=3, initial=60))
async def part(n: int, ctx: Context) -> int:
    if n < 0 or ctx.attempt < 1:
        raise ValueError(n)
    return n


class Whole(Machine):
    parts: list[int]
    key: str | None = None

    @step
    async def split(self, ctx: Context) -> Spawn:
        return Spawn([child(part.bind(n), key=self.key) for n in self.parts], then=self.join)

    @step
    async def join(self, ctx: Context) -> Done:
        return Done([one.result if one.status == "done" else one.status for one in ctx.children])


async def test_a_signal_wakes_what_the_drain_parked(durable_engine: Build) -> None:
    """R10: before the park, or after it."""
    engine = durable_engine(machines=[Checkout])
    async with engine.client():
        early, late = await engine.insert(Checkout(order=1)), await engine.insert(Checkout(order=2))
        await engine.signal(early.id, "paid", 100)
        tally = await testing.drain(engine)
        assert tally.outcomes["await"] == 2
        assert tally.advanced == 0
        await testing.assert_done(engine, early, result=100)
        await testing.assert_awaiting(engine, late, "paid")
        await engine.signal(late.id, "paid", 200)
        assert (await testing.drain(engine)).steps == {("Checkout", "ship"): {"done": 1}}
        await testing.assert_done(engine, late, result=200)


async def test_a_timeout_does_not_collapse(durable_engine: Build) -> None:
    """Section 13: it ends when the clock is moved that far; R14: not a moment before."""
    engine = durable_engine(machines=[Checkout])
    async with engine.client():
        handle = await engine.insert(Checkout(order=1))
        await testing.drain(engine)
        due = (await testing.assert_awaiting(engine, handle)).due_at
        assert due is not None
        assert (await testing.drain(engine)).runs == 0
        await testing.advance(engine, due - await testing.clock(engine) - timedelta(seconds=30))
        assert (await testing.drain(engine)).runs == 0
        await testing.advance(engine, 30)
        assert (await testing.drain(engine)).runs == 1
        await testing.assert_done(engine, handle, result="too late")


async def test_a_timeout_ends_when_other_work_moves_the_clock_beyond_it(durable_engine: Build) -> None:
    """There is one time for all."""

    class Night(Machine):
        @step
        async def fall(self, ctx: Context) -> Sleep:
            return Sleep(28_800, self.morning)

        @step
        async def morning(self, ctx: Context) -> Done:
            return Done()

    engine = durable_engine(machines=[Checkout, Night])
    async with engine.client():
        handle = await engine.insert(Checkout(order=1))
        await engine.insert(Night())
        await testing.drain(engine)
        await testing.assert_done(engine, handle, result="too late")


async def test_a_running_worker_sees_a_timeout_end(durable_engine: Build) -> None:
    """R14: also for a parked instance an advance is noticed at once."""
    engine = durable_engine(machines=[Checkout], poll_interval=60)
    parked = asyncio.Event()
    engine.on("commit", lambda event: parked.set())
    async with engine:
        handle = await engine.insert(Checkout(order=1))
        await parked.wait()
        await testing.advance(engine, 3600)
        assert await handle.result(timeout=10) == "too late"


async def test_children_run_and_their_parent_goes_on(durable_engine: Build) -> None:
    """R15: with their retries, in a queue of their own; a failed one counts."""
    engine = durable_engine(machines=[Whole, part])
    async with engine.client():
        handle = await engine.insert(Whole(parts=[1, -2, 3]))
        empty = await engine.insert(Whole(parts=[]))
        tally = await testing.drain(engine)
        await testing.assert_done(engine, handle, result=[1, "failed", 3])
        await testing.assert_done(engine, empty, result=[])
    assert tally.count(Whole, "split", "spawn") == 2
    assert (tally.count(part, outcome="retry"), tally.count(part, outcome="failed")) == (4, 1)


async def test_a_child_whose_key_is_taken_is_an_error_of_the_step(durable_engine: Build) -> None:
    """The commit refuses the spawn, and the step's policy decides: here, that it fails."""
    engine = durable_engine(machines=[Whole, part])
    async with engine.client():
        await engine.insert(part.bind(1), key="mine", delay=1e6)
        handle = await engine.insert(Whole(parts=[1], key="mine"))
        tally = await testing.drain(engine, collapse=False)
        await testing.assert_failed(engine, handle, match="DuplicateInstance")
    assert tally.outcomes == {"failed": 1}


async def test_an_instance_that_is_cancelled_while_it_runs_ends_its_step_and_not_the_drain(
    durable_engine: Build,
) -> None:
    """Section 12: cancel of a running one; the next one runs as if nothing had been."""
    ended: list[Any] = []

    @job
    async def stubborn(stays: bool, ctx: Context) -> None:
        try:
            await ctx.client.cancel(ctx.id, reason="enough")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(ctx.id)
            if not stays:
                raise

    engine = durable_engine(machines=[stubborn, Checkout])
    async with engine.client():
        handles = [await engine.insert(stubborn.bind(stays)) for stays in (False, True)]
        await engine.insert(Checkout(order=1))
        tally = await testing.drain(engine)
        for handle in handles:
            await testing.assert_status(engine, handle, "cancelled")
    assert ended == [handle.id for handle in handles]
    assert tally.outcomes == {"cancelled": 2, "await": 1}
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_what_a_schedule_has_come_to_is_started(durable_engine: Build) -> None:
    """R18, section 13: an occurrence that the clock has reached runs, once; the next one does not move the clock."""
    engine = durable_engine(machines=[tick])
    async with engine.client():
        await engine.schedule("hourly", None, tick.bind(), every=3600)
        assert (await testing.drain(engine)).runs == 0
        await testing.advance(engine, 3601)
        assert (await testing.drain(engine)).runs == 1
        assert (await testing.drain(engine)).runs == 0
