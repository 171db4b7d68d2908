"""Limits in a running engine: concurrency keys, rates, caps of queues, all of them together."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from engine_support import LONG, Build, Seen, Sql, eventually

from gen_durable import Await, Backoff, Context, Done, Engine, Machine, Next, Rate, Retry, Sleep, Spawn, job, step
from gen_durable.client.inserting import BulkItem

running: Counter[str] = Counter()
most: Counter[str] = Counter()
starts: list[tuple[str, float]] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    running.clear()
    most.clear()
    starts.clear()


class Inside:
    """Notes who is inside at once."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        starts.append((self.name, time.monotonic()))
        running[self.name] += 1
        most[self.name] = max(most[self.name], running[self.name])

    def __exit__(self, *_: object) -> None:
        running[self.name] -= 1


@job(concurrency_key=lambda self: ("tenant", self.tenant))
async def work(tenant: str, seconds: float = 0.0) -> str:
    with Inside(tenant):
        await asyncio.sleep(seconds)
    return tenant


@job(rate_limit="api")
async def call(n: int) -> int:
    with Inside("call"):
        pass
    return n


@job
async def plain(n: int) -> int:
    with Inside("plain"):
        await asyncio.sleep(0)
    return n


async def done(handles: list[Any]) -> None:
    for handle in handles:
        await handle.result(timeout=LONG)


async def nothing_left(sql: Sql, build: Build) -> None:
    """A knock may be left by a worker that was drained before its next look: then the next worker's look takes it."""
    assert await sql("SELECT count(*) FROM {s}.instances") == [(0,)]
    async with build(work):
        await eventually(lambda: _no_knocks(sql))


async def _no_knocks(sql: Sql) -> bool:
    return await sql("SELECT count(*) FROM {s}.knocks") == [(0,)]


async def test_of_each_key_one_runs_at_a_time(build: Build, sql: Sql) -> None:
    """R21, R23: and all of them run; nothing is left behind."""
    async with build(work) as engine:
        placed = await engine.insert_many([work.bind(tenant=f"t{n % 5}", seconds=0.001) for n in range(100)])
        await done([one.handle for one in placed])
    assert dict(most) == {f"t{n}": 1 for n in range(5)}
    await nothing_left(sql, build)


async def test_a_configured_name_lets_more_run(build: Build) -> None:
    """R21: K at once, and really K."""
    async with build(work, concurrency_limits={"tenant": 3}) as engine:
        placed = await engine.insert_many([work.bind(tenant="a", seconds=0.02) for _ in range(12)])
        await done([one.handle for one in placed])
    assert most["a"] == 3


async def test_two_workers_share_a_key(build: Build) -> None:
    """R21: over the whole cluster."""
    async with build(work, name="one") as one, build(work, name="two"):
        placed = await one.insert_many([work.bind(tenant="a", seconds=0.001) for _ in range(60)])
        await done([each.handle for each in placed])
    assert most["a"] == 1


async def test_a_saturated_key_holds_up_nobody_else(build: Build, sql: Sql) -> None:
    """R22: rows that wait are not touched while they wait; an unlimited job starts as ever."""
    gate = asyncio.Event()

    @job(concurrency_key="one")
    async def hold() -> None:
        await gate.wait()

    async with build(hold, plain) as engine:
        placed = await engine.insert_many([hold.bind() for _ in range(500)])
        await eventually(lambda: sql("SELECT 1 FROM {s}.instances WHERE status = 2"))
        before = await sql("SELECT id, xmin::text FROM {s}.instances WHERE status = 5 ORDER BY id")
        assert len(before) == 499
        await done([await engine.insert(plain.bind(n=n)) for n in range(20)])
        assert await sql("SELECT id, xmin::text FROM {s}.instances WHERE status = 5 ORDER BY id") == before
        gate.set()
        await done([one.handle for one in placed])


async def test_a_rate_is_kept_and_used(build: Build) -> None:
    """R21: in any window at most rate x window + burst starts; and the tokens are used when they come."""
    async with build(call, rate_limits={"api": Rate(50, per=1.0, burst=5)}) as engine:
        placed = await engine.insert_many([call.bind(n=n) for n in range(40)])
        await done([one.handle for one in placed])
    times = [at for _, at in starts]
    for first in range(40):
        for last in range(first, 40):
            # Tokens are taken by the database's clock, a little before the step starts: a busy machine's 0.1 s here.
            assert last - first + 1 <= 50 * (times[last] - times[first] + 0.1) + 5
    assert times[-1] - times[0] == pytest.approx(35 / 50, abs=0.35)


class Steps(Machine, concurrency_key=lambda self: self.account):
    """A machine under a key, one of whose steps has another one, and one a rate."""

    account: str
    path: list[str] = []

    @step
    async def first(self, ctx: Context) -> Next:
        with Inside(self.account):
            await asyncio.sleep(0.001)
        self.path.append("first")
        return Next(self.shared)

    @step(concurrency_key="printer")
    async def shared(self, ctx: Context) -> Next:
        with Inside("printer"):
            await asyncio.sleep(0.001)
        self.path.append("shared")
        return Next(self.paid)

    @step(rate_limit=lambda self: ("api", self.account), weight=2)
    async def paid(self, ctx: Context) -> Next | Retry:
        if ctx.attempt == 0:
            return Retry(0)
        self.path.append("paid")
        return Next(self.free, concurrency_key=None)

    @step
    async def free(self, ctx: Context) -> Sleep:
        self.path.append("free")
        return Sleep(0.01, then=self.parked)

    @step
    async def parked(self, ctx: Context) -> Await:
        return Await("go", then=self.last)

    @step
    async def last(self, ctx: Context) -> Done:
        with Inside(self.account):
            await asyncio.sleep(0.001)
        return Done(self.path)


@pytest.mark.parametrize("run_ahead", [True, False])
async def test_every_step_has_the_limits_of_its_own(build: Build, sql: Sql, run_ahead: bool) -> None:
    """Section 10: of the machine, of the step, of Next; a rate is kept over Retry, and each run takes tokens."""
    rates = {"api": Rate(1000, per=1.0, burst=4)}
    async with build(Steps, rate_limits=rates, run_ahead=run_ahead) as engine:
        looks = Seen(engine, "limit")
        handles = [await engine.insert(Steps(account=f"a{n % 2}")) for n in range(6)]
        for handle in handles:
            await engine.signal(handle.id, "go")
        for handle in handles:
            assert await handle.result(timeout=LONG) == ["first", "shared", "paid", "free"]
        drawn = Counter(event.name for event in looks.all if event.kind == "rate" for _ in range(event.admitted))
        assert drawn == {"api": 12}
        assert {event.partition for event in looks.all if event.kind == "rate"} == {"a0", "a1"}
    assert dict(most) == {"a0": 1, "a1": 1, "printer": 1}
    await nothing_left(sql, build)


async def test_an_insert_can_say_otherwise(build: Build) -> None:
    """Section 10: its key holds for all steps that declare none; None is no limit."""

    class Two(Machine):
        @step
        async def one(self, ctx: Context) -> Next:
            with Inside("own"):
                await asyncio.sleep(0.001)
            return Next(self.two)

        @step(run_ahead=False)
        async def two(self, ctx: Context) -> Done:
            with Inside("own"):
                await asyncio.sleep(0.001)
            return Done()

    async with build(Two, work) as engine:
        placed = await engine.insert_many([BulkItem(Two(), concurrency_key="own") for _ in range(10)])
        await done([one.handle for one in placed])
        assert most["own"] == 1
        free = await engine.insert_many(
            [BulkItem(work.bind(tenant="b", seconds=0.05), concurrency_key=None) for _ in range(5)]
        )
        await done([one.handle for one in free])
        assert most["b"] == 5


async def test_a_queue_has_a_cap_in_the_whole_cluster(build: Build) -> None:
    """Section 10: over both workers, and it is used."""
    options: dict[str, Any] = {"queue_limits": {"default": 4}}
    async with build(work, name="one", **options) as one, build(work, name="two", **options):
        rows = [BulkItem(work.bind(tenant="x", seconds=0.01), concurrency_key=None) for _ in range(60)]
        placed = await one.insert_many(rows)
        await done([each.handle for each in placed])
    assert most["x"] == 4


async def test_a_worker_that_dies_gives_its_slot_back(build: Build, sql: Sql) -> None:
    """R23: with its reclaim."""
    stuck = asyncio.Event()

    @job(concurrency_key="one")
    async def hold(n: int) -> int:
        if n == 0 and not stuck.is_set():
            stuck.set()
            await asyncio.Event().wait()
        return n

    engine: Engine
    async with build(hold) as engine:
        first = await engine.insert(hold.bind(n=0))
        await stuck.wait()
        second = await engine.insert(hold.bind(n=1))
        assert engine._worker is not None
        dead = engine._worker
        dead.declared_dead()
        await sql("DELETE FROM {s}.workers WHERE id = %s", dead.id)
        assert await first.result(timeout=LONG) == 0
        assert await second.result(timeout=LONG) == 1
    await nothing_left(sql, build)


async def test_what_a_schedule_starts_has_the_limits_of_its_machine(build: Build, sql: Sql) -> None:
    """Section 10, R18: also of an occurrence that is started in its turn."""
    async with build(work) as engine:
        await engine.schedule("often", None, work.bind(tenant="s", seconds=0.02), every=1)
        await eventually(lambda: sql("SELECT 1 FROM {s}.finished"))
        await done([await engine.trigger_schedule("often") for _ in range(5)])
    assert most["s"] == 1
    assert await sql("SELECT DISTINCT own_gate FROM {s}.schedules") == [("ctenant\x1fs",)]


async def test_children_and_replacements_have_limits_too(build: Build, sql: Sql) -> None:
    """Section 10: and a row that is replaced while it waits changes its line."""

    class Family(Machine):
        @step
        async def start(self, ctx: Context) -> Spawn:
            return Spawn([work.bind(tenant="c", seconds=0.002) for _ in range(10)], then=self.end)

        @step
        async def end(self, ctx: Context) -> Done:
            return Done(len(ctx.children))

    gate = asyncio.Event()

    @job(concurrency_key=lambda self: self.name)
    async def hold(name: str) -> str:
        await gate.wait()
        return name

    async with build(work, Family, hold) as engine:
        assert await (await engine.insert(Family())).result(timeout=LONG) == 10
        assert most["c"] == 1
        first = await engine.insert(hold.bind(name="a"))
        await eventually(lambda: sql("SELECT 1 FROM {s}.instances WHERE status = 2"))
        second = await engine.insert(hold.bind(name="a"), key="k")
        assert (await second.get()).status == "blocked"
        again = await engine.insert(hold.bind(name="b"), key="k", on_conflict="replace")
        assert again.id == second.id
        await eventually(lambda: sql("SELECT 1 FROM {s}.instances WHERE status = 2 AND gate = 'cb'"))
        gate.set()
        assert await again.result(timeout=LONG) == "b"
        await first.result(timeout=LONG)
    await nothing_left(sql, build)


async def test_a_retried_instance_waits_for_its_limit_again(build: Build, sql: Sql) -> None:
    """R21: retry puts it into its line, with the key that it had."""
    fail = True
    gate = asyncio.Event()

    @job(concurrency_key="one", retry=Backoff(max_attempts=1))
    async def shaky(n: int) -> int:
        if fail and n == 0:
            raise ValueError("not yet")
        await gate.wait()
        return n

    async with build(shaky) as engine:
        first = await engine.insert(shaky.bind(n=0))
        await eventually(lambda: sql("SELECT 1 FROM {s}.finished"))
        second = await engine.insert(shaky.bind(n=1))
        await eventually(lambda: sql("SELECT 1 FROM {s}.instances WHERE status = 2"))
        fail = False
        await engine.retry(first.id)
        assert (await first.get()).status == "blocked"
        gate.set()
        assert (await second.result(timeout=LONG), await first.result(timeout=LONG)) == (1, 0)
