"""The engine's other rules hold for transactional steps: signals, joins, keys, limits, hooks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from engine_support import LONG, Build, Seen, Sql, eventually
from transactional_support import Notes

from gen_durable import Await, Context, Done, Machine, Next, Rate, Spawn, child, job, step
from gen_durable.errors import DuplicateInstance

SERIALIZABLE = "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"


@pytest.mark.parametrize("level", ["default", "serializable"])
async def test_signals_are_consumed_with_what_the_step_wrote(build: Build, notes: Notes, sql: Sql, level: str) -> None:
    """R10, R13, R5: what the step was handed goes with its transaction; a signal that comes while it runs stays."""
    inside, go = asyncio.Event(), asyncio.Event()

    class Waiter(Machine, transactional=True):
        @step
        async def start(self, ctx: Context) -> Await:
            return Await("go", then=self.woken)

        @step
        async def woken(self, ctx: Context) -> Await:
            if level == "serializable":
                await ctx.conn.execute(SERIALIZABLE)
            await notes.add(ctx, f"woken by {[signal.payload for signal in ctx.awaited]}")
            if not inside.is_set():
                inside.set()
                await go.wait()
            return Await("go", then=self.last)

        @step
        async def last(self, ctx: Context) -> Done:
            return Done([signal.payload for signal in ctx.awaited])

    async with build(Waiter) as engine:
        handle = await engine.insert(Waiter())
        await engine.signal(handle.id, "go", 1)
        await asyncio.wait_for(inside.wait(), LONG)
        await engine.signal(handle.id, "go", 2)
        go.set()
        assert await handle.result(timeout=LONG) == [1, 2]
    assert await notes.all() == ["woken by [1]"]


@pytest.mark.parametrize("level", ["default", "serializable"])
async def test_transactional_children_count_their_parent_down_once(build: Build, notes: Notes, level: str) -> None:
    """R3, R15, R5: they end at once and meet in their parent's row; whoever conflicts runs again; the join opens."""

    @job(name="leaf", transactional=True)
    async def leaf(n: int, ctx: Context) -> int:
        if level == "serializable":
            await ctx.conn.execute(SERIALIZABLE)
        await notes.add(ctx, f"{n:02}")
        return n

    class Parent(Machine, transactional=True):
        @step
        async def start(self, ctx: Context) -> Spawn:
            await notes.add(ctx, "parent")
            return Spawn([child(leaf.bind(n=n), key=f"leaf:{n}") for n in range(4)], then=self.join)

        @step
        async def join(self, ctx: Context) -> Done:
            return Done([one.result for one in ctx.children])

    async with build(Parent, leaf) as engine:
        assert await (await engine.insert(Parent())).result(timeout=60) == list(range(4))
    assert await notes.all() == [f"{n:02}" for n in range(4)] + ["parent"]


async def test_keys_and_their_scopes_hold(build: Build, notes: Notes) -> None:
    """R16: a transactional end frees the key, or reserves it where its scope says so."""

    @job(transactional=True)
    async def keyed(ctx: Context) -> None:
        await notes.add(ctx, "kept")

    async with build(keyed) as engine:
        for _ in range(2):
            await (await engine.insert(keyed.bind(), key="free")).result(timeout=LONG)
        handle = await engine.insert(keyed.bind(), key="reserved", scope=("live", "done"))
        await handle.result(timeout=LONG)
        with pytest.raises(DuplicateInstance):
            await engine.insert(keyed.bind(), key="reserved")
    assert await notes.all() == ["kept"] * 3


@pytest.mark.parametrize("level", ["default", "serializable"])
async def test_a_slot_is_freed_by_the_step_s_commit(build: Build, notes: Notes, sql: Sql, level: str) -> None:
    """R21, R22: one at a time, and the next starts at once, not at a poll; the line has nothing left at the end."""
    running = [0, 0]

    class Slow(Machine, transactional=True, concurrency_key="account"):
        @step
        async def first(self, ctx: Context) -> Next:
            if level == "serializable":
                await ctx.conn.execute(SERIALIZABLE)
            running[0] += 1
            running[1] = max(running)
            await notes.add(ctx, "first")
            running[0] -= 1
            return Next(self.second)

        @step
        async def second(self, ctx: Context) -> Done:
            await notes.add(ctx, "second")
            return Done()

    async with build(Slow, poll_interval=60.0) as engine:
        handles = [await engine.insert(Slow()) for _ in range(10)]
        for handle in handles:
            await handle.result(timeout=LONG)

        async def clean() -> bool:
            return await sql("SELECT 1 FROM {s}.knocks") == []

        await eventually(clean)
    assert running == [0, 1]
    assert await notes.all() == ["first"] * 10 + ["second"] * 10


async def test_a_step_with_a_rate_and_a_failed_run_keeps_to_both(build: Build, notes: Notes) -> None:
    """R21: a transactional step takes its tokens as any other."""

    @job(transactional=True, rate_limit="fast")
    async def metered(ctx: Context, n: int) -> int:
        await notes.add(ctx, str(n))
        return n

    async with build(metered, rate_limits={"fast": Rate(100, per=1, burst=2)}) as engine:
        handles = [await engine.insert(metered.bind(n=n)) for n in range(5)]
        assert [await handle.result(timeout=LONG) for handle in handles] == list(range(5))
    assert await notes.all() == [str(n) for n in range(5)]


async def test_hooks_and_history_tell_of_it_as_of_any_step(build: Build, notes: Notes) -> None:
    """Section 12: one step event and one commit of one outcome for each; the history has both transitions."""

    class Two(Machine, transactional=True):
        @step
        async def first(self, ctx: Context) -> Next:
            await notes.add(ctx, "first")
            return Next(self.second)

        @step
        async def second(self, ctx: Context) -> Done:
            return Done(2)

    engine = build(Two)
    steps, commits = Seen(engine, "step"), Seen(engine, "commit")
    async with engine:
        handle = await engine.insert(Two())
        assert await handle.result(timeout=LONG) == 2
        history: list[Any] = await engine.history(handle.id)
        listed = await engine.list(machine=engine.settings.machines[0].name, status="done")
        assert [one.id for one in listed.items] == [handle.id]
    assert [(event.step, event.outcome) for event in steps.all] == [("first", "next"), ("second", "done")]
    assert [(event.size, event.stale) for event in commits.all] == [(1, 0), (1, 0)]
    assert [(entry.step, entry.outcome) for entry in history] == [("first", "next"), ("second", "done")]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_a_child_s_lane_that_is_younger_than_the_snapshot_costs_a_run(
    build: Build, notes: Notes, level: str
) -> None:
    """R5, R8: the first use of a queue is committed apart, and the step's snapshot is from before: no fault of the
    step's, which runs again, without spending an attempt."""
    runs: list[int] = []

    class Leaf(Machine):
        @step
        async def only(self, ctx: Context) -> Done:
            return Done()

    class Parent(Machine, transactional=True):
        @step
        async def start(self, ctx: Context) -> Spawn:
            runs.append(ctx.attempt)
            await ctx.conn.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
            await notes.add(ctx, "kept")
            return Spawn([child(Leaf(), queue="young")], then=self.last)

        @step
        async def last(self, ctx: Context) -> Done:
            return Done([each.status for each in ctx.children])

    async with build(Parent, Leaf, queues={"default": 5, "young": 5}) as engine:
        assert await (await engine.insert(Parent())).result(timeout=LONG) == ["done"]
    assert len(runs) > 1
    assert not any(runs)
    assert await notes.all() == ["kept"]
