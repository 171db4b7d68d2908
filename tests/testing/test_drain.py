"""``testing.drain``: everything that is due, in the test's own task, through the statements of production."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest

from gen_durable import (
    Backoff,
    BulkItem,
    Cancel,
    Context,
    Done,
    Engine,
    Machine,
    Next,
    Retry,
    Sleep,
    job,
    step,
    testing,
)
from gen_durable.errors import EngineStateError, InvalidArgument, TooManySteps
from gen_durable.events import CommitEvent, StepEvent
from gen_durable.testing._stepper import Stepper

Build = Callable[..., Engine]

ran: list[Any] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()


@job
async def note(what: Any) -> Any:
    ran.append(what)
    return what


@job(queue="other")
async def elsewhere(what: Any) -> None:
    ran.append(what)


class Chain(Machine):
    n: int = 0

    @step
    async def one(self, ctx: Context) -> Next:
        self.n += 1
        return Next(self.two)

    @step
    def two(self, ctx: Context) -> Next:
        self.n += 10
        return Next(self.three, queue="other")

    @step
    async def three(self, ctx: Context) -> Done:
        return Done({"n": self.n})


class Loop(Machine):
    pause: float = 0.0

    @step
    async def again(self, ctx: Context) -> Any:
        return Sleep(self.pause, self.again) if self.pause else Next(self.again)


class Naps(Machine):
    hours: list[float]

    @step
    async def nap(self, ctx: Context) -> Any:
        ran.append(await testing.clock(ctx.client))
        return Sleep(timedelta(hours=self.hours.pop(0)), self.nap) if self.hours else Done()


@job(retry=Backoff(max_attempts=4, initial=100, factor=10, maximum=10_000, jitter=False))
async def shaky(until: int, ctx: Context) -> int:
    ran.append(await testing.clock(ctx.client))
    if ctx.attempt < until:
        raise OSError("not yet")
    return ctx.attempt


def seconds_between(times: list[Any]) -> list[int]:
    return [round((later - earlier).total_seconds()) for earlier, later in itertools.pairwise(times)]


async def test_a_chain_over_queues_runs_to_its_end(durable_engine: Build) -> None:
    """Section 13: all that is due, until nothing can run; a tally by outcome and step. R1: all is committed."""
    engine = durable_engine(machines=[Chain], queues={"default": 1, "other": 1})
    async with engine.client():
        handle = await engine.insert(Chain())
        tally = await testing.drain(engine)
        await testing.assert_done(engine, handle, result={"n": 11})
        history = await engine.history(handle.id)
    assert tally.outcomes == {"next": 2, "done": 1}
    assert tally.steps == {
        ("Chain", "one"): {"next": 1},
        ("Chain", "two"): {"next": 1},
        ("Chain", "three"): {"done": 1},
    }
    assert (tally.runs, tally.count(Chain), tally.count("Chain", "two"), tally.count(outcome="done")) == (3, 3, 1, 1)
    assert tally.count(note) == tally.advanced == 0
    assert [(one.step, one.outcome) for one in history] == [("one", "next"), ("two", "next"), ("three", "done")]


async def test_nothing_to_do_is_an_empty_tally(durable_engine: Build) -> None:
    engine = durable_engine(machines=[note])
    async with engine.client():
        tally = await testing.drain(engine)
        assert await engine.workers() == []
    assert (tally.runs, tally.outcomes, tally.steps) == (0, {}, {})


async def test_the_worker_is_registered_while_it_runs_and_gone_afterwards(durable_engine: Build) -> None:
    """R4: claims and fences are those of a real worker's row."""

    @job
    async def look(ctx: Context) -> list[int]:
        assert (await ctx.client.get(ctx.id)).status == "executing"
        return [ctx.worker, *(worker.id for worker in await ctx.client.workers())]

    engine = durable_engine(machines=[look])
    async with engine.client():
        handle = await engine.insert(look.bind())
        await testing.drain(engine)
        mine, *all_of_them = await handle.result()
        assert all_of_them == [mine]
        assert await engine.workers() == []


async def test_it_runs_in_the_task_of_the_test(durable_engine: Build) -> None:
    """Section 13: in the test's own task; what the test has set, its steps see."""
    flavour: ContextVar[str] = ContextVar("flavour", default="none")

    @job
    async def taste() -> list[Any]:
        return [flavour.get(), id(asyncio.current_task())]

    engine = durable_engine(machines=[taste])
    async with engine.client():
        handle = await engine.insert(taste.bind())
        flavour.set("sour")
        await testing.drain(engine)
        assert await handle.result() == ["sour", id(asyncio.current_task())]


async def test_the_order_is_that_of_the_queue(durable_engine: Build) -> None:
    """R17: by priority, then by due time, then by id, over all machines of a queue."""

    @job
    async def other(what: str) -> None:
        ran.append(what)

    engine = durable_engine(machines=[note, other])
    async with engine.client():
        await engine.insert_many(
            [
                BulkItem(note.bind("third"), priority=5),
                BulkItem(other.bind("fourth"), priority=5),
                BulkItem(other.bind("first"), priority=-5),
                note.bind("second"),
                BulkItem(note.bind("later"), priority=-9, delay=60),
            ]
        )
        await testing.drain(engine)
    assert ran == ["first", "second", "third", "fourth", "later"]


async def test_queues_take_turns_and_can_be_chosen(durable_engine: Build) -> None:
    engine = durable_engine(machines=[note, elsewhere])
    async with engine.client():
        await engine.insert_many([note.bind(1), note.bind(2), elsewhere.bind("a"), elsewhere.bind("b")])
        assert (await testing.drain(engine, queues=["other"])).runs == 2
        assert ran == ["a", "b"]
        await engine.insert_many([elsewhere.bind("c"), elsewhere.bind("d")])
        await testing.drain(engine)
    assert ran == ["a", "b", 1, "c", 2, "d"]


async def test_what_steps_insert_runs_too(durable_engine: Build) -> None:
    """Until nothing can run: also rows of lanes that did not exist when it began."""

    @job
    async def spread(ctx: Context) -> None:
        await ctx.client.insert(elsewhere.bind("child"), queue="other", delay=5)
        await ctx.client.insert(note.bind("other child"), queue="other")

    engine = durable_engine(machines=[spread, note, elsewhere])
    async with engine.client():
        await engine.insert(spread.bind())
        tally = await testing.drain(engine)
    assert tally.outcomes == {"done": 3}
    assert ran == ["other child", "child"]


async def test_sleeps_and_delays_collapse(durable_engine: Build) -> None:
    """Section 13: scheduled work collapses; R6: by the engine's clock all the time has passed."""
    engine = durable_engine(machines=[Naps])
    async with engine.client():
        began = await testing.clock(engine)
        await engine.insert(Naps(hours=[1, 100, 0.5]), delay=timedelta(days=2))
        tally = await testing.drain(engine)
        assert await testing.clock(engine) - began >= timedelta(days=2, hours=101.5)
    assert seconds_between([began, *ran]) == [172_800, 3600, 360_000, 1800]
    assert tally.outcomes == {"sleep": 3, "done": 1}
    assert tally.advanced == pytest.approx(538_200, abs=30)


async def test_backoffs_collapse(durable_engine: Build) -> None:
    """Section 4: the policy's delays, without waiting for them."""
    engine = durable_engine(machines=[shaky])
    async with engine.client():
        good, bad = await engine.insert(shaky.bind(2)), await engine.insert(shaky.bind(9), delay=100_000)
        tally = await testing.drain(engine)
        await testing.assert_done(engine, good, result=2)
        await testing.assert_failed(engine, bad, match="OSError: not yet")
    assert tally.count(shaky, outcome="retry") == 2 + 3
    assert seconds_between(ran[:3]) == [100, 1000]
    assert seconds_between(ran[3:]) == [100, 1000, 10_000]


async def test_without_collapse_what_is_due_later_stays(durable_engine: Build) -> None:
    engine = durable_engine(machines=[note, Naps])
    async with engine.client():
        await engine.insert(note.bind("later"), delay=60)
        await engine.insert(Naps(hours=[1]))
        tally = await testing.drain(engine, collapse=False)
        assert tally.outcomes == {"sleep": 1}
        await testing.advance(engine, 59)
        assert (await testing.drain(engine, collapse=False)).runs == 0
        await testing.advance(engine, 1)
        assert (await testing.drain(engine, collapse=False)).outcomes == {"done": 1}
        assert ran[-1] == "later"


async def test_unknown_machines_and_paused_queues_are_left_alone(durable_engine: Build) -> None:
    """R9: no attempt is spent; nor does the clock move for what could not run anyway."""
    writer, engine = durable_engine(machines=[note, elsewhere, Chain]), durable_engine(machines=[note, elsewhere])
    async with writer.client(), engine.client():
        strangers = [await writer.insert(Chain()), await writer.insert(Chain(), delay=60)]
        held = [await engine.insert(elsewhere.bind(1)), await engine.insert(elsewhere.bind(2), delay=60)]
        await engine.pause_queue("other")
        await engine.insert(note.bind("known"), delay=30)
        tally = await testing.drain(engine)
        assert ran == ["known"]
        assert tally.advanced == pytest.approx(30, abs=5)
        for handle in [*strangers, *held]:
            left = await testing.assert_status(engine, handle, "runnable")
            assert (left.attempt, left.crashes) == (0, 0)
        await engine.resume_queue("other")
        assert (await testing.drain(engine)).runs == 2


@pytest.mark.parametrize("machine", [Loop(), Loop(pause=3600)], ids=["chain", "sleeps"])
async def test_a_runaway_is_stopped(durable_engine: Build, machine: Loop) -> None:
    """Section 13: at ``max_steps``, with an error that names the instance and the step; the row is free again."""
    engine = durable_engine(machines=[Loop, note])
    async with engine.client():
        await engine.insert(note.bind(1), priority=-1)
        handle = await engine.insert(machine, key="round and round")
        said = r"20 steps have run, and instance \d+ \(Loop, key 'round and round'\) stands at 'again', .* 19 times"
        with pytest.raises(TooManySteps, match=said) as caught:
            await testing.drain(engine, max_steps=20)
        assert (caught.value.instance_id, caught.value.step, caught.value.max_steps) == (handle.id, "again", 20)
        left = await testing.assert_status(engine, handle, "runnable")
        assert (left.worker, left.attempt) == (None, 0)
        assert await engine.workers() == []


async def test_just_enough_steps_is_no_runaway(durable_engine: Build) -> None:
    engine = durable_engine(machines=[Chain, elsewhere])
    async with engine.client():
        await engine.insert(Chain())
        assert (await testing.drain(engine, max_steps=3)).runs == 3


async def test_a_worker_can_not_commit_after_the_drain_took_over(durable_engine: Build, sql: Any) -> None:
    """R4: the claim of a worker that was declared dead is taken back; its late outcome is refused."""
    engine = durable_engine(machines=[note])
    async with engine.client():
        handle = await engine.insert(note.bind("x"))
        stalled = Stepper(engine, ["default"])
        await stalled.open()
        try:
            held = await stalled.take(stalled.queues["default"])
            assert held is not None
            await sql("DELETE FROM {s}.workers WHERE id = %s", stalled.id)
            assert (await testing.drain(engine)).outcomes == {"done": 1}
            before = await testing.assert_done(engine, handle, result="x")
            assert await stalled.step(held) == ("stale", False)
        finally:
            await stalled.close()
        assert await engine.get(handle.id) == before
        assert [one.outcome for one in await engine.history(handle.id)] == ["crashed", "done"]


async def test_a_claim_that_was_taken_away_is_counted_as_stale(durable_engine: Build, sql: Any) -> None:
    """R4: an outcome under a claim that is gone changes nothing."""

    @job
    async def robbed(ctx: Context) -> None:
        if not ran:
            ran.append(ctx.id)
            await sql("UPDATE {s}.instances SET status = 0, worker = NULL, rev = rev + 1 WHERE id = %s", ctx.id)

    engine = durable_engine(machines=[robbed])
    async with engine.client():
        await engine.insert(robbed.bind())
        tally = await testing.drain(engine)
    assert tally.outcomes == {"stale": 1, "done": 1}


async def test_errors_cancels_and_bad_outcomes_go_their_way(durable_engine: Build) -> None:
    """R8: as in production, and nothing of it reaches the test."""

    @job(retry=Backoff(max_attempts=1))
    async def fails() -> None:
        raise ValueError("no")

    @job
    async def gives_up() -> None:
        raise Cancel("enough")

    class Wrong(Machine):
        @step
        async def odd(self, ctx: Context) -> Any:
            return 5

    class Again(Machine):
        @step(timeout=0.01)
        async def slow(self, ctx: Context) -> Any:
            if ctx.attempt:
                await asyncio.Event().wait()
            return Retry(30)

    engine = durable_engine(machines=[fails, gives_up, Wrong, Again])
    async with engine.client():
        handles = [await engine.insert(one) for one in (fails.bind(), gives_up.bind(), Wrong(), Again())]
        tally = await testing.drain(engine)
        await testing.assert_failed(engine, handles[0], match="ValueError: no")
        await testing.assert_status(engine, handles[1], "cancelled")
        await testing.assert_failed(engine, handles[2], match="InvalidOutcome.*returned 5")
        await testing.assert_failed(engine, handles[3], match="TimeoutError")
    assert tally.outcomes == {"failed": 3, "cancelled": 1, "retry": 1}


async def test_the_hooks_of_the_engine_are_called(durable_engine: Build) -> None:
    engine = durable_engine(machines=[note])
    seen: list[Any] = []
    engine.on("step", seen.append)
    engine.on("commit", seen.append)
    async with engine.client():
        await engine.insert(note.bind(1))
        await testing.drain(engine)
    assert [type(event) for event in seen] == [StepEvent, CommitEvent]


async def test_a_drain_that_is_cancelled_gives_its_claim_back(durable_engine: Build) -> None:
    """The cancellation is the test's: it is not taken for the step's error, and no attempt is spent."""
    started = asyncio.Event()

    @job
    async def stuck() -> None:
        started.set()
        await asyncio.Event().wait()

    engine = durable_engine(machines=[stuck])
    async with engine.client():
        handle = await engine.insert(stuck.bind())
        task = asyncio.create_task(testing.drain(engine))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left = await testing.assert_status(engine, handle, "runnable")
        assert (left.attempt, left.worker, await engine.history(handle.id)) == (0, None, [])
        assert await engine.workers() == []


async def test_it_refuses_what_it_can_not_do(durable_engine: Build, build: Build) -> None:
    """Section 14: a clear error, before anything runs."""
    engine = durable_engine(machines=[note])
    with pytest.raises(EngineStateError, match="not started"):
        await testing.drain(engine)
    async with engine:
        with pytest.raises(EngineStateError, match="runs a worker"):
            await testing.drain(engine)
    async with engine.client():
        for wrong in (0, True, 1.5, "10"):
            with pytest.raises(InvalidArgument, match="max_steps="):
                await testing.drain(engine, max_steps=wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="no queue 'nope'"):
            await testing.drain(engine, queues=["nope"])
        with pytest.raises(InvalidArgument, match="list of names"):
            await testing.drain(engine, queues="default")
        with pytest.raises(InvalidArgument, match="at least one"):
            await testing.drain(engine, queues=[])
    production = build(note)
    async with production.client():
        await production.insert(note.bind(1))
        with pytest.raises(EngineStateError, match="real clock"):
            await testing.drain(production)
        assert (await testing.drain(production, collapse=False)).outcomes == {"done": 1}
