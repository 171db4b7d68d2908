"""``testing.drain`` and transactional steps: the same statements, in the test's own task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gen_durable import Backoff, Context, Done, Engine, Job, Machine, Next, Spawn, child, job, step, testing


@pytest.fixture
async def table(sql: Callable[..., Any], durable_schema: str) -> AsyncIterator[str]:
    """A table of the user's."""
    await sql("CREATE TABLE {s}.notes (what text)")
    await sql("CREATE TABLE {s}.pairs (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    yield f"{durable_schema}.notes"
    await sql("DROP TABLE {s}.notes, {s}.pairs")


async def test_a_drain_runs_transactional_steps(
    durable_engine: Callable[..., Engine], table: str, sql: Callable[..., Any]
) -> None:
    """R5: chains, plain functions, children, errors and their retries: each commits or rolls back as ever."""

    class Walk(Machine, transactional=True, retry=Backoff(max_attempts=3, initial=60.0)):
        @step
        async def first(self, ctx: Context) -> Next:
            await ctx.conn.execute(f"INSERT INTO {table} VALUES (%s)", (f"first {ctx.attempt}",))
            if ctx.attempt < 2:
                raise ValueError("not yet")
            return Next(self.second)

        @step
        def second(self, ctx: Context) -> Spawn:
            ctx.conn.execute(f"INSERT INTO {table} VALUES ('second')")
            return Spawn([child(leaf.bind(n=n)) for n in range(2)], then=self.last)

        @step
        async def last(self, ctx: Context) -> Done:
            return Done(len(ctx.children))

    @job(transactional=True)
    async def leaf(n: int, ctx: Context) -> int:
        await ctx.conn.execute(f"INSERT INTO {table} VALUES (%s)", (f"leaf {n}",))
        return n

    engine = durable_engine(machines=[Walk, leaf])
    async with engine.client():
        handle = await engine.insert(Walk())
        tally = await testing.drain(engine)
        assert (await handle.get()).result == 2
    assert tally.runs == 7
    found = await sql("SELECT what FROM {s}.notes ORDER BY 1")
    assert found == [("first 2",), ("leaf 0",), ("leaf 1",), ("second",)]


async def test_a_drain_runs_a_step_again_after_a_conflict(
    durable_engine: Callable[..., Engine], table: str, sql: Callable[..., Any]
) -> None:
    """R5: no attempt is spent; an error of the COMMIT is the step's."""
    runs: list[int] = []
    pairs = table.replace("notes", "pairs")

    class Conflict(Job, transactional=True):
        async def run(self, ctx: Context) -> None:
            runs.append(ctx.attempt)
            if len(runs) < 3:
                await ctx.conn.execute("DO $$ BEGIN RAISE EXCEPTION SQLSTATE '40001'; END $$")
            await ctx.conn.execute(f"INSERT INTO {table} VALUES ('once')")

    class Twice(Job, transactional=True, max_attempts=1):
        async def run(self, ctx: Context) -> None:
            await ctx.conn.execute(f"INSERT INTO {pairs} VALUES (1), (1)")

    engine = durable_engine(machines=[Conflict, Twice])
    async with engine.client():
        await engine.insert(Conflict())
        refused = await engine.insert(Twice())
        async with asyncio.timeout(20):
            await testing.drain(engine)
        error = (await refused.get()).error
        assert error is not None
        assert error["type"] == "psycopg.errors.UniqueViolation"
    assert runs == [0, 0, 0]
    assert await sql("SELECT what FROM {s}.notes") == [("once",)]
