"""R17 and queues: order, due times, concurrency, pausing."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from engine_support import Build, Seen, Sql, eventually, moment

from gen_durable import BulkItem, Context, Done, Machine, Next, job, step
from gen_durable.errors import InvalidArgument

ran: list[tuple[str, int]] = []


@job
async def a(n: int) -> None:
    ran.append(("a", n))


@job
async def b(n: int) -> None:
    ran.append(("b", n))


@job
def c(n: int) -> None:
    ran.append(("c", n))


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()


async def test_a_queue_runs_by_priority_then_due_time_then_id(build: Build) -> None:
    """R17: over all machines of a queue, with one slot: priority, then due time, then id."""
    dice = random.Random(11)
    start = datetime.now(UTC) - timedelta(hours=1)
    items = []
    for n in range(240):
        priority, minute = dice.choice((-5, 0, 0, 3)), dice.choice((0, 1, 2, None))
        at = None if minute is None else start + timedelta(minutes=minute)
        items.append(BulkItem(dice.choice((a, b, c)).bind(n=n), priority=priority, at=at))
    async with build(a, b, c, queues={}) as web:
        report = await web.insert_many(items)
        found = {item.id: await item.handle.get() for item in report}
        wanted = sorted(found.values(), key=lambda one: (one.priority, one.due_at, one.id))
        async with build(a, b, c, queues={"default": 1}):
            for item in report:
                await item.handle.result(timeout=15)
    assert ran == [(one.machine, one.state["n"]) for one in wanted]


async def test_what_is_due_later_starts_nothing_and_holds_up_nobody(build: Build) -> None:
    """R17, R6: rows with a delay or a future ``at`` wait, however urgent; due ones go past them at once."""
    async with build(a, b, queues={"default": 1}, poll_interval=60) as engine:
        later = [await engine.insert(a.bind(n=n), priority=-100, delay=3600) for n in range(5)]
        later += [await engine.insert(a.bind(n=9), priority=-100, at=datetime.now(UTC) + timedelta(hours=1))]
        soon = await engine.insert(b.bind(n=1), delay=0.3)
        for n in range(10, 30):
            await (await engine.insert(b.bind(n=n), priority=100)).result(timeout=5)
        await soon.result(timeout=5)
        found = await soon.get()
        assert {(await handle.get()).status for handle in later} == {"runnable"}
    assert found.finished_at is not None
    assert 0.3 <= (found.finished_at - found.inserted_at).total_seconds() < 0.9
    assert [which for which, _ in ran] == ["b"] * 21


@pytest.mark.parametrize("past", [{"delay": 0}, {"at": datetime(2020, 1, 1, tzinfo=UTC)}])
async def test_what_is_due_already_starts_at_once(build: Build, past: dict[str, object]) -> None:
    """R19: a delay of 0 and a time that has passed are due now, for an idle worker of this process too."""
    async with build(a, poll_interval=60) as engine:
        await (await engine.insert(a.bind(n=1))).result(timeout=5)
        await (await engine.insert(a.bind(n=2), **past)).result(timeout=5)  # type: ignore[arg-type]


async def test_each_queue_has_its_own_concurrency_and_never_more(build: Build) -> None:
    """Section 8: each queue runs at most its number at once, and reaches it; queues don't wait for each other."""
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()
    full = asyncio.Event()
    limits = {"one": 1, "three": 3, "seven": 7}

    class Busy(Machine):
        @step
        async def work(self, ctx: Context) -> Next:
            await self.count(ctx.queue)
            return Next(self.more)

        @step
        async def more(self, ctx: Context) -> Done:
            await self.count(ctx.queue)
            return Done()

        async def count(self, queue: str) -> None:
            now[queue] += 1
            most[queue] = max(most[queue], now[queue])
            if dict(now) == limits:
                full.set()
            await full.wait()
            now[queue] -= 1

    async with build(Busy, a, queues=limits) as engine:
        for queue in limits:  # quick ones first, so that it takes many in advance
            for item in await engine.insert_many(BulkItem(a.bind(n=n), queue=queue) for n in range(200)):
                await item.handle.result(timeout=10)
        report = await engine.insert_many(BulkItem(Busy(), queue=queue) for queue in limits for _ in range(20))
        await asyncio.wait_for(full.wait(), 10)
        for item in report:
            await item.handle.result(timeout=10)
    assert dict(most) == limits


async def test_steps_in_threads_keep_to_the_concurrency_too(build: Build) -> None:
    """Section 8: plain functions count as well."""
    now, most = [0], [0]

    @job
    def busy() -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        now[0] -= 1

    async with build(busy, queues={"default": 2}, threads=8) as engine:
        for item in await engine.insert_many(busy.bind() for _ in range(60)):
            await item.handle.result(timeout=10)
    assert 1 <= most[0] <= 2


async def test_two_workers_share_a_queue_and_each_row_runs_once(build: Build) -> None:
    """R17: of two workers that race for rows each row goes to one; both get work."""
    by_worker: Counter[int] = Counter()
    once: Counter[int] = Counter()
    both = asyncio.Event()

    @job
    async def shared(ctx: Context, n: int) -> None:
        by_worker[ctx.worker] += 1
        once[n] += 1
        if len(by_worker) == 2:
            both.set()
        await both.wait()

    async with build(shared, queues={}) as web:
        report = await web.insert_many(shared.bind(n=n) for n in range(200))
        async with build(shared, queues={"default": 5}), build(shared, queues={"default": 5}):
            for item in report:
                await item.handle.result(timeout=15)
    assert set(once.values()) == {1}
    assert len(by_worker) == 2


async def test_a_worker_leaves_what_it_can_not_start_to_others(build: Build) -> None:
    """R17: rows that a worker has taken in advance and can't start soon go back, and an idle worker takes them."""
    stuck = asyncio.Event()
    ids: list[int] = []

    @job
    async def quick() -> None: ...

    @job
    async def hog(ctx: Context) -> None:
        ids.append(ctx.worker)
        if len(ids) == 1:
            await stuck.wait()

    async with build(quick, hog, queues={"default": 1}) as first:
        for item in await first.insert_many(quick.bind() for _ in range(300)):  # it learns to take much in advance
            await item.handle.result(timeout=10)
        report = await first.insert_many(hog.bind() for _ in range(20))
        async with build(quick, hog, queues={"default": 1}):
            for item in report[1:]:
                await item.handle.result(timeout=10)
            stuck.set()
            await report[0].handle.result(timeout=10)
    assert ids.count(ids[0]) < 20


async def test_a_paused_queue_starts_nothing_anywhere_until_it_is_resumed(build: Build) -> None:
    """Section 8: pause and resume are cluster-wide, hold for machines that come later, and leave other queues alone."""
    queues = {"default": 5, "other": 5}
    async with build(a, b, queues=queues, poll_interval=60) as one, build(a, b, queues=queues, poll_interval=60) as two:
        await (await one.insert(a.bind(n=0))).result(timeout=5)
        await one.pause_queue("default")
        held = [await client.insert(a.bind(n=n)) for n, client in ((1, one), (2, two))]
        held.append(await two.insert(b.bind(n=3)))  # a lane that is new in this queue
        free = await two.insert(a.bind(n=4), queue="other")
        await free.result(timeout=5)
        await moment(0.1)
        assert {(await handle.get()).status for handle in held} == {"runnable"}
        await one.pause_queue("default")  # twice is once
        await two.resume_queue("default")
        for handle in held:
            await handle.result(timeout=5)
        await two.resume_queue("default")
        assert await (await one.insert(a.bind(n=5))).result(timeout=5) is None
        for call in (one.pause_queue, one.resume_queue):
            with pytest.raises(InvalidArgument, match="there is no queue 'nope'"):
                await call("nope")
            with pytest.raises(InvalidArgument, match="queue must not be empty"):
                await call("")


async def test_a_pause_lets_running_steps_finish_and_stops_before_the_next_claim(build: Build) -> None:
    """Section 8: what runs goes on; what waits stays."""
    go, started = asyncio.Event(), asyncio.Event()

    @job
    async def slow() -> str:
        started.set()
        await go.wait()
        return "done"

    async with build(slow, queues={"default": 1}) as engine:
        first = await engine.insert(slow.bind())
        await started.wait()
        await engine.pause_queue("default")
        second = await engine.insert(slow.bind())
        go.set()
        assert await first.result(timeout=5) == "done"
        await moment(0.1)
        assert (await second.get()).status == "runnable"
        await engine.resume_queue("default")
        assert await second.result(timeout=5) == "done"


async def test_a_queue_that_is_paused_before_its_first_row(build: Build) -> None:
    """Section 8: a pause holds for machines that nobody had in that queue when it began."""
    async with build(a, b, queues={"default": 1, "fresh": 2}) as engine:
        await engine.pause_queue("fresh")
        held = [await engine.insert(which.bind(n=1), queue="fresh") for which in (a, b)]
        await (await engine.insert(a.bind(n=2))).result(timeout=5)
        await moment(0.1)
        assert {(await handle.get()).status for handle in held} == {"runnable"}
        await engine.resume_queue("fresh")
        for handle in held:
            await handle.result(timeout=5)


async def test_a_pause_stops_a_chain_and_hands_back_what_was_taken_in_advance(build: Build, sql: Sql) -> None:
    """Section 8: a paused queue runs no further step, of a chain or of what a worker holds; it all waits."""

    class Endless(Machine):
        n: int = 0

        @step
        async def go(self, ctx: Context) -> Next:
            self.n += 1
            return Next(self.go)

    async with build(Endless, queues={"default": 2}) as engine:
        steps = Seen(engine, "step")
        handles = [await engine.insert(Endless()) for _ in range(6)]
        await steps.until(lambda seen: len(seen) > 300)
        await engine.pause_queue("default")

        async def all_back() -> bool:
            return {(await handle.get()).status for handle in handles} == {"runnable"}

        await eventually(all_back)
        count = len(steps.all)
        await moment(0.1)
        assert len(steps.all) == count
        rows = await sql("SELECT sum((state ->> 'n')::int), max(attempt), max(crashes) FROM {s}.instances")
        assert rows == [(count, 0, 0)]
        await engine.resume_queue("default")
        await steps.until(lambda seen: len(seen) > count + 100)


async def test_a_queue_that_no_worker_runs_waits_for_one(build: Build, sql: Sql) -> None:
    """Section 8: a worker runs the queues that it was given; others wait, whatever is due in them."""
    async with build(a, queues={"default": 1}) as engine:
        async with build(a, queues={"elsewhere": 1}):
            pass  # so that the queue is known
        steps = Seen(engine, "step")
        waiting = await engine.insert(a.bind(n=1), queue="elsewhere", priority=-9)
        await (await engine.insert(a.bind(n=2))).result(timeout=5)
        assert (await waiting.get()).status == "runnable"
        assert len(steps.all) == 1
        async with build(a, queues={"elsewhere": 1}):
            await waiting.result(timeout=5)


async def test_a_big_backlog_that_waits_does_not_hold_up_what_is_due(build: Build) -> None:
    """R17: thousands of rows that are due later, or in another lane, cost the pick nothing that can be felt."""
    async with build(a, b, c, queues={"default": 2}, poll_interval=60) as engine:
        await engine.insert_many(BulkItem(a.bind(n=n), delay=3600, priority=-1) for n in range(4000))
        for n in range(10):
            handle = await engine.insert(b.bind(n=n))
            await handle.result(timeout=20)
    assert ran == [("b", n) for n in range(10)]
