"""What a transactional step starts in this process, by an insert of its own, does not run under its mark."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from engine_support import Build, Sql, ended, eventually
from transactional_support import Notes

from gen_durable import Context, job

pytestmark = pytest.mark.usefixtures("notes")


async def until_calm(engine: Any) -> None:
    """Until the worker has found its queue empty: then what is inserted here is born as its claim."""

    async def is_empty() -> bool:
        return bool(engine._worker.queues["default"].empty)

    await eventually(is_empty)


async def test_a_transactional_step_inserts_another(build: Build, notes: Notes, sql: Sql) -> None:
    """R19, R5: the row is born as a claim of this worker; its executor is made in the context of the step that
    inserted it, and must not take that step's mark for its own."""
    engines: list[Any] = []
    go = asyncio.Event()

    @job(transactional=True, max_attempts=1)
    async def inner(ctx: Context) -> str:
        await notes.add(ctx, "inner")
        await go.wait()  # so that each needs an executor, and a connection, of its own
        return "inner"

    @job(transactional=True, max_attempts=1)
    async def outer(ctx: Context) -> str:
        handles = []
        for _ in range(5):
            await until_calm(engines[0])
            handles.append(await engines[0].insert(inner.bind()))
        go.set()
        found = [await ended(handle) for handle in handles]
        return str({(one.status, one.error and one.error["message"]) for one in found})

    async with build(outer, inner, transaction_pool_size=8) as engine:
        engines.append(engine)
        await until_calm(engine)
        outcome = await (await engine.insert(outer.bind())).result(timeout=15)
    assert outcome == "{('done', None)}"
    assert await notes.all() == ["inner"] * 5


async def test_an_executor_made_by_a_step_undoes_others(build: Build, notes: Notes, sql: Sql) -> None:
    """The same executor later runs a transactional step that raises: the worker must not crash."""
    engines: list[Any] = []
    go, inside = asyncio.Event(), asyncio.Semaphore(0)

    @job
    async def plain() -> None:
        inside.release()
        await go.wait()

    @job(transactional=True, max_attempts=1)
    async def good(ctx: Context) -> None:
        await ctx.conn.execute("SELECT 1")

    @job(transactional=True, max_attempts=1)
    async def bad(ctx: Context) -> None:
        await notes.add(ctx, "never")
        raise ValueError("as meant")

    @job(transactional=True, max_attempts=1)
    async def outer(ctx: Context) -> None:
        for _ in range(3):
            await until_calm(engines[0])
            await engines[0].insert(plain.bind())
            await asyncio.wait_for(inside.acquire(), 15)
        go.set()

    async with build(outer, plain, good, bad, transaction_pool_size=1, queues={"default": 4}) as engine:
        engines.append(engine)
        first = engine._worker
        await ended(await engine.insert(good.bind()))  # makes the connection
        await until_calm(engine)
        await ended(await engine.insert(outer.bind()))
        for handle in [await engine.insert(bad.bind()) for _ in range(12)]:
            found = await ended(handle)
            assert found.error["message"] == "as meant", found
        assert engine._worker is first, "the worker crashed"
    assert await notes.all() == []
