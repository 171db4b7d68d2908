"""Children: spawns, joins, what the joining step is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from engine_support import Build, Sql, ended, eventually

from gen_durable import Await, Cancel, Context, Done, Machine, Next, Spawn, Stop, child, job, step
from gen_durable.errors import InvalidArgument


@job
async def double(n: int) -> int:
    return n * 2


@job(max_attempts=1)
async def picky(n: int) -> int:
    if n < 0:
        raise ValueError("below zero")
    if n == 0:
        raise Cancel("nothing to do")
    return n


class Waiter(Machine):
    @step
    async def start(self, ctx: Context) -> Await:
        return Await("never", then=self.start)


class Fan(Machine):
    numbers: list[int]

    @step
    async def start(self, ctx: Context) -> Spawn:
        return Spawn([double.bind(n=n) for n in self.numbers], then=self.join)

    @step
    async def join(self, ctx: Context) -> Done:
        return Done([[c.result for c in ctx.children], ctx.timed_out])


async def test_all_children_in_the_order_given(build: Build) -> None:
    """R15."""
    async with build(Fan, double) as engine:
        handle = await engine.insert(Fan(numbers=list(range(10))))
        assert await handle.result(timeout=10) == [[n * 2 for n in range(10)], False]
        empty = await engine.insert(Fan(numbers=[]))
        assert await empty.result(timeout=10) == [[], False]
        kinds = [transition.outcome for transition in await engine.history(handle.id)]
    assert kinds == ["spawn", "done"]


async def test_failed_and_cancelled_children_count(build: Build) -> None:
    """R15: each has its status, result and error."""

    class Mixed(Machine):
        @step
        async def start(self, ctx: Context) -> Spawn:
            return Spawn([picky.bind(n=1), child(picky.bind(n=-1), key="bad"), picky.bind(n=0)], then=self.join)

        @step
        async def join(self, ctx: Context) -> Done:
            return Done([[c.machine, c.key, c.status, c.result, c.error and c.error["type"]] for c in ctx.children])

    async with build(Mixed, picky) as engine:
        handle = await engine.insert(Mixed())
        assert await handle.result(timeout=10) == [
            ["picky", None, "done", 1, None],
            ["picky", "bad", "failed", None, "ValueError"],
            ["picky", None, "cancelled", None, "gen_durable.outcome.Cancel"],
        ]


@pytest.mark.parametrize(
    ("join", "success", "expected"),
    [("any", False, 1), (2, False, 2), (1, True, 1), ("all", True, None)],
)
async def test_join_rules(build: Build, join: Any, success: bool, expected: int | None) -> None:
    """Section 6: any, a number, only successes; early when it can't be reached; the rest is cancelled."""

    class Race(Machine):
        @step
        async def start(self, ctx: Context) -> Spawn:
            racers = (
                [picky.bind(n=-1), picky.bind(n=2), picky.bind(n=3)] if success else [picky.bind(n=2), picky.bind(n=3)]
            )
            return Spawn([*racers, Waiter()], then=self.join_, join=join, success=success, cancel_rest=True)

        @step
        async def join_(self, ctx: Context) -> Done:
            return Done([c.status for c in ctx.children])

    async with build(Race, picky, Waiter) as engine:
        handle = await engine.insert(Race())
        statuses = await handle.result(timeout=10)
        page = await engine.list(machine="Waiter")
    assert statuses[-1] == "cancelled"
    assert page.items[0].status == "cancelled"
    if expected is not None:
        assert statuses.count("done") >= expected
    else:
        assert "failed" in statuses


async def test_a_timeout_opens_the_join_with_what_is_there(build: Build) -> None:
    """Section 6: ``timeout=``."""

    class Slow(Machine):
        @step
        async def start(self, ctx: Context) -> Spawn:
            return Spawn([double.bind(n=1), Waiter()], then=self.join, timeout=0.1)

        @step
        async def join(self, ctx: Context) -> Done:
            return Done([ctx.timed_out, [c.status for c in ctx.children]])

    async with build(Slow, double, Waiter) as engine:
        handle = await engine.insert(Slow())
        assert await handle.result(timeout=10) == [True, ["done", "awaiting_signal"]]


async def test_nesting_and_a_second_spawn(build: Build) -> None:
    """R15: the children of this spawn, and of no other."""

    class Tree(Machine):
        depth: int
        sums: list[int] = []

        @step
        async def start(self, ctx: Context) -> Spawn | Done:
            if self.depth == 0:
                return Done(1)
            return Spawn([Tree(depth=self.depth - 1) for _ in range(3)], then=self.again)

        @step
        async def again(self, ctx: Context) -> Spawn:
            self.sums.append(sum(c.result for c in ctx.children))
            return Spawn([double.bind(n=self.sums[0])], then=self.finish)

        @step
        async def finish(self, ctx: Context) -> Done:
            assert len(ctx.children) == 1
            return Done(ctx.children[0].result)

    async with build(Tree, double) as engine:
        handle = await engine.insert(Tree(depth=3))
        assert await handle.result(timeout=20) == 6**3


async def test_a_taken_key_is_an_error_of_the_step(build: Build, sql: Sql) -> None:
    """R3: nothing of the outcome is there; the step's error says why."""

    class Keyed(Machine):
        @step
        async def start(self, ctx: Context) -> Spawn:
            return Spawn([double.bind(n=1), child(double.bind(n=2), key="taken")], then=self.join)

        @step
        async def join(self, ctx: Context) -> Done:
            return Done()

        async def on_error(self, error: Any, ctx: Context) -> Next | Stop:
            return Stop(f"{type(error).__name__} {error.key}")

    async with build(Keyed, double) as engine:
        await engine.insert(double.bind(n=0), key="taken", delay=60)
        handle = await engine.insert(Keyed())
        found = await ended(handle)
        assert found.status == "failed"
        assert found.error is not None
        assert found.error["message"] == "DuplicateInstance taken"
        assert await sql("SELECT count(*) FROM {s}.instances") == [(1,)]


async def test_cancel_cascades(build: Build, sql: Sql) -> None:
    """Section 6: ``cancel`` of a parent can cascade."""

    class Family(Machine):
        depth: int = 2

        @step
        async def start(self, ctx: Context) -> Spawn | Await:
            if self.depth == 0:
                return Await("never", then=self.start)
            return Spawn([Family(depth=self.depth - 1) for _ in range(2)], then=self.start)

    async with build(Family) as engine:
        handle = await engine.insert(Family())

        async def grown() -> bool:
            return await sql("SELECT count(*) FROM {s}.instances WHERE status = 3") == [(4,)]

        await eventually(grown)
        assert await engine.cancel(handle.id, cascade=True, reason="enough")
        assert await sql("SELECT count(*) FROM {s}.instances") == [(0,)]
        assert await sql("SELECT count(*) FROM {s}.finished WHERE status = 8") == [(7,)]


async def test_cancel_stops_a_running_step(build: Build) -> None:
    """Section 12: the step's task is cancelled; what it would have said is refused."""
    started, stopped = asyncio.Event(), asyncio.Event()

    class Busy(Machine):
        @step
        async def start(self, ctx: Context) -> Done:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
            return Done()

    async with build(Busy, double) as engine:
        handle = await engine.insert(Busy())
        await asyncio.wait_for(started.wait(), 10)
        assert await engine.cancel(handle.id)
        await asyncio.wait_for(stopped.wait(), 10)
        assert (await handle.get()).status == "cancelled"
        again = await engine.insert(double.bind(n=4))
        assert await again.result(timeout=10) == 8


async def test_retry_of_a_failed_one(build: Build) -> None:
    """Section 12: a failed one again from its step."""
    broken = True

    class Flaky(Machine):
        done: list[str] = []

        @step
        async def one(self, ctx: Context) -> Next:
            self.done.append("one")
            return Next(self.two)

        @step
        async def two(self, ctx: Context) -> Done:
            if broken:
                raise RuntimeError("out of order")
            return Done([*self.done, "two"])

    async with build(Flaky) as engine:
        handle = await engine.insert(Flaky(), key="k")
        assert (await ended(handle)).status == "failed"
        broken = False
        await engine.retry("k")
        assert await handle.result(timeout=10) == ["one", "two"]
        assert [t.outcome for t in await engine.history(handle.id)] == ["next", "failed", "done"]
        with pytest.raises(InvalidArgument, match="is done"):
            await engine.retry(handle.id)


@pytest.mark.parametrize("word", ["notification", "answer"])
async def test_a_late_word_of_a_cancel_does_not_stop_the_retry(
    build: Build, sql: Sql, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """Section 12, R4: the word of a cancel belongs to the claim that was cancelled, not to a later one."""
    started, stopped, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Busy(Machine):
        @step
        async def start(self, ctx: Context) -> Done:
            started.set()
            try:
                await go.wait()
            except asyncio.CancelledError:
                stopped.set()
                raise
            return Done("again")

    async with build(Busy) as engine:
        handle = await engine.insert(Busy())
        await asyncio.wait_for(started.wait(), 10)
        ((worker, rev),) = await sql("SELECT worker, rev FROM {s}.instances")
        answers: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(engine, "_settle_cancel", answers.append)
            assert await engine.cancel(handle.id)
        await asyncio.wait_for(stopped.wait(), 10)  # by the notification
        started.clear()
        await engine.retry(handle.id)
        await asyncio.wait_for(started.wait(), 10)
        assert engine._worker is not None
        if word == "notification":
            engine._worker.notified(f"c:{worker}:{handle.id}:{rev}")  # it was long on its way
        else:
            engine._settle_cancel(*answers)
        go.set()
        assert await handle.result(timeout=10) == "again"
        assert [t.outcome for t in await engine.history(handle.id)] == ["cancelled", "done"]
