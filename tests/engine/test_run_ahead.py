"""Run-ahead: on by default, off by engine, machine or step, fair to what waits, and not to be seen in the history."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from engine_support import Build, Seen, Sql

from gen_durable import Context, Done, Engine, Machine, Next, job, step


class Chain(Machine):
    left: int = 10

    @step
    async def go(self, ctx: Context) -> Next | Done:
        self.left -= 1
        return Next(self.go) if self.left else Done(ctx.worker)


class ChainOff(Chain, run_ahead=False):
    pass


class ChainStepOff(Machine):
    left: int = 10

    @step
    async def go(self, ctx: Context) -> Next | Done:
        self.left -= 1
        return Next(self.back) if self.left else Done(ctx.worker)

    @step(run_ahead=False)
    async def back(self, ctx: Context) -> Next | Done:
        self.left -= 1
        return Next(self.go) if self.left else Done(ctx.worker)


async def _claims(engine: Engine, web: Engine, machine: Machine) -> tuple[int, list[Any]]:
    claims = Seen(engine, "claim")
    handle = await web.insert(machine)  # in a process of its own, as it were: its rows are not born claimed
    await handle.result(timeout=10)
    found = await handle.get()
    history = await engine.history(handle.id)
    facts = [(t.step, t.attempt, t.outcome, t.worker == found.worker, t.error, t.state) for t in history]
    return sum(event.got for event in claims.all), facts


async def test_run_ahead_is_the_default_and_can_be_turned_off(build: Build) -> None:
    """Section 3, run-ahead: a chain is one claim by default; off by engine, machine or step it is claimed anew."""
    async with build(Chain, ChainOff, ChainStepOff, queues={}) as web:
        async with build(Chain, ChainOff, ChainStepOff, history="states") as on:
            ahead = await _claims(on, web, Chain())
            off = await _claims(on, web, ChainOff())
            half = await _claims(on, web, ChainStepOff())
        async with build(Chain, run_ahead=False, history="states") as engine:
            engine_off = await _claims(engine, web, Chain())
    assert [ahead[0], off[0], half[0], engine_off[0]] == [1, 10, 6, 10]
    assert ahead[1] == off[1] == engine_off[1]
    assert [fact[5]["left"] for fact in ahead[1]] == list(range(9, -1, -1))


@pytest.mark.parametrize(("concurrency", "prefetch"), [(1, 0), (1, 500), (2, 0)])
async def test_a_long_chain_gives_way_to_what_waits_in_its_queue(build: Build, concurrency: int, prefetch: int) -> None:
    """Section 3, run-ahead: an endless chain yields after its share, so others of its queue get their turn."""
    stop = asyncio.Event()
    turns: list[str] = []

    class Endless(Machine):
        n: int = 0

        @step
        async def go(self, ctx: Context) -> Next | Done:
            self.n += 1
            return Done(self.n) if stop.is_set() else Next(self.go)

    @job
    async def other(n: int) -> int:
        turns.append(f"other {n}")
        return n

    async with build(Endless, other, queues={"default": concurrency}, prefetch=prefetch) as engine:
        chains = [await engine.insert(Endless()) for _ in range(concurrency)]
        running = Seen(engine, "step")
        await running.until(lambda seen: len(seen) > 3)
        for n in range(3):
            handle = await engine.insert(other.bind(n=n))
            assert await handle.result(timeout=5) == n
        stop.set()
        for chain in chains:
            assert await chain.result(timeout=10) > 3
        history = await engine.history(chains[0].id)
    assert {t.outcome for t in history} == {"next", "done"}
    assert turns == ["other 0", "other 1", "other 2"]


async def test_a_more_urgent_row_comes_before_the_rest_of_a_chain(build: Build) -> None:
    """Section 3, run-ahead: at every yield the order of priority holds: the chain waits for what is more urgent."""
    order: list[str] = []
    full = asyncio.Event()
    go = asyncio.Event()

    class Long(Machine):
        n: int = 0

        @step
        async def go(self, ctx: Context) -> Next | Done:
            self.n += 1
            order.append("chain")
            if self.n == 1:
                full.set()
                await go.wait()
            return Done() if self.n == 400 else Next(self.go)

    @job
    async def urgent() -> None:
        order.append("urgent")

    @job
    async def idle() -> None:
        order.append("idle")

    async with build(Long, urgent, idle, queues={"default": 1}) as engine:
        chain = await engine.insert(Long())
        await full.wait()
        lazy = await engine.insert(idle.bind(), priority=9)
        rush = [await engine.insert(urgent.bind(), priority=-9) for _ in range(3)]
        go.set()
        for handle in (chain, lazy, *rush):
            await handle.result(timeout=10)
    assert order.count("chain") == 400
    assert order.index("urgent") <= 101  # within its share of 100 steps
    assert order.index("idle") > max(place for place, what in enumerate(order) if what == "urgent")


async def test_a_chain_that_has_had_its_share_lets_all_that_is_more_urgent_go_first(build: Build) -> None:
    """Section 3, run-ahead: a chain does not run on, step by step, between rows that come before it."""
    order: list[str] = []

    class Lazy(Machine, priority=9):
        n: int = 0

        @step
        async def go(self, ctx: Context) -> Next:
            order.append("chain")
            self.n += 1
            return Next(self.go)

    @job
    async def urgent() -> None:
        order.append("urgent")

    async with build(Lazy, urgent, queues={"default": 1}, prefetch=0) as engine:
        steps = Seen(engine, "step")
        await engine.insert(Lazy())
        await steps.until(lambda seen: seen)
        for item in await engine.insert_many(urgent.bind() for _ in range(400)):
            await item.handle.result(timeout=15)
    first, last = order.index("urgent"), len(order) - order[::-1].index("urgent")
    assert order[first:last].count("urgent") == 400
    assert order[first:last].count("chain") <= 110  # its share is 100 steps


async def test_a_drain_ends_a_chain_between_two_steps(build: Build, sql: Sql) -> None:
    """Section 3, run-ahead; R26: on drain the chain hands the row back, with all that it has committed."""

    class Endless(Machine):
        n: int = 0

        @step
        async def go(self, ctx: Context) -> Next:
            self.n += 1
            return Next(self.go)

    async with build(Endless) as engine:
        running = Seen(engine, "step")
        handle = await engine.insert(Endless())
        await running.until(lambda seen: len(seen) >= 50)
    rows = await sql("SELECT status, worker, attempt, crashes, (state ->> 'n')::int FROM {s}.instances")
    assert rows[0][:4] == (0, None, 0, 0)
    count = (await sql("SELECT count(*) FROM {s}.transitions WHERE instance_id = %s", handle.id))[0][0]
    assert rows[0][4] == count == len(running.all)
