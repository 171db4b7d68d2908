"""``testing.drain`` and limits: keys, rates, caps of queues; the clock goes to where tokens are there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gen_durable import Context, Done, Engine, Machine, Next, Rate, job, step, testing

Build = Callable[..., Engine]


@job(concurrency_key="one")
async def alone(n: int) -> int:
    return n


@job(rate_limit="api")
async def call(n: int) -> int:
    return n


@job(queue="capped")
async def plain(n: int) -> int:
    return n


class Both(Machine):
    n: int

    @step(concurrency_key="one", rate_limit="api")
    async def first(self, ctx: Context) -> Next:
        return Next(self.second)

    @step(concurrency_key="two")
    async def second(self, ctx: Context) -> Done:
        return Done(self.n)


LIMITS = {"rate_limits": {"api": Rate(1, per=60, burst=2)}, "queue_limits": {"capped": 1}}
MACHINES = [alone, call, plain, Both]


@pytest.mark.parametrize("queues", [None, ["default"]])
async def test_rows_of_one_key_run_one_after_the_other(durable_engine: Build, queues: list[str] | None) -> None:
    """R21, section 13"""
    async with durable_engine(machines=MACHINES, **LIMITS).client() as engine:
        handles = [await engine.insert(alone.bind(n)) for n in range(5)]
        tally = await testing.drain(engine, queues=queues)
        assert tally.runs == 5
        for n, handle in enumerate(handles):
            await testing.assert_done(engine, handle, result=n)


async def test_the_clock_goes_to_where_there_are_tokens(durable_engine: Build) -> None:
    """Section 13: a rate's wait is as a delay: it is collapsed, or left."""
    async with durable_engine(machines=MACHINES, **LIMITS).client() as engine:
        for n in range(4):
            await engine.insert(call.bind(n))
        first = await testing.drain(engine, collapse=False)
        assert first.runs == 2
        assert (await testing.drain(engine, collapse=False)).runs == 0
        await testing.advance(engine, 61)
        assert (await testing.drain(engine, collapse=False)).runs == 1
        last = await testing.drain(engine)
        assert last.runs == 1
        assert 55 < last.advanced < 65


async def test_both_and_a_cap(durable_engine: Build) -> None:
    """Section 10: all of them compose."""
    async with durable_engine(machines=MACHINES, **LIMITS).client() as engine:
        for n in range(3):
            await engine.insert(Both(n=n))
            await engine.insert(plain.bind(n))
        tally = await testing.drain(engine)
        assert tally.runs == 9
        assert 55 < tally.advanced < 65
