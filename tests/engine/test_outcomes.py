"""What each outcome does to the row, and what a result may be."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import itertools
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from engine_support import Build, Sql, ended, eventually

from gen_durable import Context, Done, Handle, Machine, Next, Retry, Sleep, Stop, job, step
from gen_durable.errors import InstanceFailed, StillRunning


async def test_next_commits_the_state_and_starts_the_next_step_at_attempt_0(build: Build) -> None:
    """Section 3, ``Next``: the state is committed, the step changes, ``attempt`` is back at 0."""
    attempts: list[tuple[str, int]] = []

    class Two(Machine):
        n: int = 1

        @step
        async def first(self, ctx: Context) -> Next | Retry:
            attempts.append((ctx.step, ctx.attempt))
            self.n += 1
            return Retry() if ctx.attempt < 2 else Next(self.second)

        @step
        def second(self, ctx: Context) -> Done:
            attempts.append((ctx.step, ctx.attempt))
            return Done(self.n)

    async with build(Two) as engine:
        handle = await engine.insert(Two())
        assert await handle.result(timeout=10) == 4
        found = await handle.get()
    assert attempts == [("first", 0), ("first", 1), ("first", 2), ("second", 0)]
    assert (found.state, found.status, found.step, found.attempt) == ({"n": 4}, "done", "second", 0)
    assert found.error is None
    assert found.terminal


async def test_next_moves_to_another_queue_with_another_priority(build: Build) -> None:
    """Section 3: ``Next`` takes per-transition overrides ``queue=`` and ``priority=``, and keeps what is not given."""
    where: list[tuple[str, str, int]] = []

    class Mover(Machine):
        @step
        async def a(self, ctx: Context) -> Next:
            where.append((ctx.step, ctx.queue, ctx.priority))
            return Next(self.b, queue="other", priority=7)

        @step
        async def b(self, ctx: Context) -> Next:
            where.append((ctx.step, ctx.queue, ctx.priority))
            return Next(self.c, priority=-5)

        @step
        async def c(self, ctx: Context) -> Next:
            where.append((ctx.step, ctx.queue, ctx.priority))
            return Next(self.d)

        @step
        async def d(self, ctx: Context) -> Done:
            where.append((ctx.step, ctx.queue, ctx.priority))
            return Done()

    async with build(Mover, queues={"default": 2, "other": 2}) as engine:
        handle = await engine.insert(Mover(), priority=3)
        assert await handle.result(timeout=10) is None
        found = await handle.get()
    assert where == [("a", "default", 3), ("b", "other", 7), ("c", "other", -5), ("d", "other", -5)]
    assert (found.queue, found.priority) == ("other", -5)


async def test_next_to_a_queue_of_another_engine_is_run_there(build: Build) -> None:
    """Section 3: a ``Next`` with a queue that only another worker runs is started there, without waiting for a poll."""

    class Relay(Machine):
        @step
        async def here(self, ctx: Context) -> Next:
            return Next(self.there, queue="far")

        @step
        async def there(self, ctx: Context) -> Done:
            return Done([ctx.queue, ctx.worker])

    near = build(Relay, queues={"default": 2})
    far = build(Relay, queues={"far": 2}, poll_interval=60.0)
    async with far, near:
        queue, worker = await (await near.insert(Relay())).result(timeout=5)
        by_name = {w.name: w.id for w in await near.workers()}
    assert (queue, worker) == ("far", by_name[far.settings.name])


@pytest.mark.parametrize("run_ahead", [True, False])
async def test_next_with_a_delay_waits_that_long_by_the_clock_of_the_database(build: Build, run_ahead: bool) -> None:
    """R6, section 3: ``Next(delay=)`` is due after the delay, not before, and precise to well under a second."""

    class Later(Machine):
        @step
        async def a(self, ctx: Context) -> Next:
            return Next(self.b, delay=timedelta(seconds=0.3))

        @step
        async def b(self, ctx: Context) -> Done:
            return Done()

    async with build(Later, run_ahead=run_ahead) as engine:
        handle = await engine.insert(Later())
        await handle.result(timeout=10)
        a, b = await engine.history(handle.id)
    assert 0.3 <= (b.at - a.at).total_seconds() < 0.8


async def test_retry_commits_what_the_step_left_and_counts_up(build: Build, sql: Sql) -> None:
    """Section 3, ``Retry``: the same step again after the delay, ``attempt + 1``, with the state that it left."""

    class Poller(Machine):
        seen: list[int] = []

        @step
        async def look(self, ctx: Context) -> Retry | Done:
            self.seen.append(ctx.attempt)
            return Retry(0.15) if ctx.attempt < 2 else Done(self.seen)

    async with build(Poller) as engine:
        handle = await engine.insert(Poller())
        assert await handle.result(timeout=10) == [0, 1, 2]
        history = await engine.history(handle.id)
    assert [(t.outcome, t.attempt) for t in history] == [("retry", 0), ("retry", 1), ("done", 2)]
    gaps = [(b.at - a.at).total_seconds() for a, b in itertools.pairwise(history)]
    assert all(0.15 <= gap < 0.65 for gap in gaps), gaps


async def test_sleep_is_durable_and_precise(build: Build) -> None:
    """Section 3, ``Sleep``: a pause precise to well under a second; meanwhile the row is runnable, due later."""

    class Nap(Machine):
        slept: bool = False

        @step
        async def before(self, ctx: Context) -> Sleep:
            self.slept = True
            return Sleep(0.4, then=self.after)

        @step
        async def after(self, ctx: Context) -> Done:
            return Done([self.slept, ctx.attempt])

    async with build(Nap) as engine:
        handles = [await engine.insert(Nap()) for _ in range(20)]

        async def asleep() -> bool:
            found = await handles[0].get()
            return found.step == "after"

        await eventually(asleep)
        found = await handles[0].get()
        assert (found.status, found.state, found.worker) == ("runnable", {"slept": True}, None)
        assert found.due_at is not None
        assert abs((found.due_at - found.updated_at).total_seconds() - 0.4) < 0.001
        for handle in handles:
            assert await handle.result(timeout=5) == [True, 0]
            pause, end = await engine.history(handle.id)
            assert pause.outcome == "sleep"
            assert 0.4 <= (end.at - pause.at).total_seconds() < 0.8


async def test_many_short_sleeps_at_once_are_all_on_time(build: Build) -> None:
    """R19: a deadline that is set while the timers look is not forgotten until the next poll."""

    class Naps(Machine):
        left: int = 8

        @step
        async def nap(self, ctx: Context) -> Sleep | Done:
            self.left -= 1
            return Sleep(0.01 + self.left % 3 / 500, then=self.nap) if self.left else Done()

    async with build(Naps, poll_interval=60.0, run_ahead=False) as engine:
        inserted = await engine.insert_many(Naps() for _ in range(60))
        await asyncio.gather(*(one.handle.result(timeout=8) for one in inserted))


async def test_done_records_the_result_and_stop_the_reason(build: Build) -> None:
    """Section 3, ``Done`` and ``Stop``: terminal, with the state that the step left, the result or the reason."""

    class Ender(Machine):
        how: str
        touched: bool = False

        @step
        async def only(self, ctx: Context) -> Done | Stop:
            self.touched = True
            return Done({"ok": 1}) if self.how == "done" else Stop("out of stock")

    async with build(Ender) as engine:
        good, bad = await engine.insert(Ender(how="done")), await engine.insert(Ender(how="stop"))
        assert await good.result(timeout=10) == {"ok": 1}
        with pytest.raises(InstanceFailed, match="out of stock") as caught:
            await bad.result(timeout=10)
        assert (caught.value.instance_id, caught.value.error) == (bad.id, {"type": "Stop", "message": "out of stock"})
        a, b = await good.get(), await bad.get()
    assert (a.status, a.state["touched"], a.result, a.error) == ("done", True, {"ok": 1}, None)
    assert (b.status, b.state["touched"], b.result) == ("failed", True, None)
    for found in (a, b):
        assert found.finished_at is not None
        assert found.due_at is None
        assert found.finished_at >= found.inserted_at


async def test_a_step_may_be_given_by_its_name(build: Build) -> None:
    """Section 3: a plain string is a step reference too; ``Sleep`` takes one as ``Next`` does."""

    class Named(Machine):
        @step
        async def a(self, ctx: Context) -> Next:
            return Next("b")

        @step
        async def b(self, ctx: Context) -> Sleep:
            return Sleep(0, "c")

        @step
        async def c(self, ctx: Context) -> Next:
            return Next(Named.d)

        @step
        async def d(self, ctx: Context) -> Done:
            return Done("there")

    async with build(Named) as engine:
        assert await (await engine.insert(Named())).result(timeout=10) == "there"


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Plain:
    a: int


@attrs.define
class Attrs:
    a: int


class Struct(msgspec.Struct):
    a: int


class Model(pydantic.BaseModel):
    a: int


RESULTS: list[tuple[Any, Any]] = [
    (None, None),
    (True, True),
    (0, 0),
    (-(2**63), -(2**63)),
    (10**400, 10**400),
    (1.5, 1.5),
    (1.5e-300, 1.5e-300),
    ("", ""),
    ("\\u0000 snow ☃ 😀", "\\u0000 snow ☃ 😀"),
    ([], []),
    ({}, {}),
    ((1, "two"), [1, "two"]),
    ({3}, [3]),
    ({1: "int key"}, {"1": "int key"}),
    (b"\0\xff", "AP8="),
    (Decimal("1.10"), "1.10"),
    (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    (datetime(2024, 2, 29, 12, tzinfo=UTC), "2024-02-29T12:00:00Z"),
    (Colour.RED, "red"),
    (Plain(1), {"a": 1}),
    (Attrs(1), {"a": 1}),
    (Struct(1), {"a": 1}),
    (Model(a=1), {"a": 1}),
    ([Plain(1), {"x": [Struct(2)]}], [{"a": 1}, {"x": [{"a": 2}]}]),
]


async def test_results_of_every_storable_kind_come_back_as_json_values(build: Build) -> None:
    """Section 3, ``Done``: whatever can be written as JSON is recorded, from machines and jobs alike."""

    class Giver(Machine):
        which: int

        @step
        async def give(self, ctx: Context) -> Done:
            return Done(RESULTS[self.which][0])

    @job
    async def give(which: int) -> Any:
        return RESULTS[which][0]

    async with build(Giver, give) as engine:
        places = range(len(RESULTS))
        pairs: list[tuple[Handle, Handle]] = [
            (await engine.insert(Giver(which=i)), await engine.insert(give.bind(which=i))) for i in places
        ]
        for (machine, function), (_, wanted) in zip(pairs, RESULTS, strict=True):
            for handle in (machine, function):
                result = await handle.result(timeout=10)
                assert result == wanted
                assert type(result) is type(wanted)


async def test_result_times_out_and_can_be_asked_again(build: Build) -> None:
    """Section 12: ``StillRunning`` on timeout; the work goes on, and the same id answers later."""
    go = asyncio.Event()

    @job
    async def slow() -> str:
        await go.wait()
        return "finished"

    async with build(slow) as engine:
        handle = await engine.insert(slow.bind())
        with pytest.raises(StillRunning, match="ask again with the same id") as caught:
            await handle.result(timeout=0.05)
        assert caught.value.instance_id == handle.id
        assert caught.value.status in ("runnable", "executing")
        with pytest.raises(TimeoutError):
            await engine.result(handle.id, timeout=0)
        waiting = [asyncio.create_task(engine.result(handle.id)) for _ in range(3)]
        go.set()
        assert await asyncio.gather(*waiting) == ["finished"] * 3
        assert await engine.result(handle.id, timeout=0) == "finished"
        assert (await ended(handle)).status == "done"
