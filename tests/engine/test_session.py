"""The connection that a client keeps between its calls: nobody waits for it in vain, and no call gets a broken one."""

from __future__ import annotations

import asyncio
import time

import psycopg
import pytest
from engine_support import LONG, Build, Sql, eventually

from gen_durable import BulkItem, job
from gen_durable._store.operation import Request, Row
from gen_durable.errors import InvalidArgument


@job
async def plain(n: int) -> int:
    return n


async def test_a_call_after_the_connections_were_ended_gets_a_good_one(build: Build, sql: Sql) -> None:
    """R27: while nothing runs, the end of a connection is no error of the next call."""
    async with build(plain, queues={}).client() as engine:
        await engine.insert(plain.bind(n=1))
        name = f"gen_durable {engine.settings.name}"[:63]
        query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s"
        for n in range(3):
            ended = await sql(query, name)
            assert ended
            assert all(done for (done,) in ended)
            await engine.insert(plain.bind(n=n))
        assert len((await engine.list()).items) == 4


@pytest.mark.parametrize("size", [1, 2])
async def test_calls_that_wait_for_a_connection_get_it(build: Build, size: int) -> None:
    """One that is given back goes to who waits for it."""
    async with build(plain, queues={}, pool_size=size, statement_timeout=5.0).client() as engine, asyncio.timeout(LONG):
        for _ in range(3):
            await asyncio.gather(*[engine.insert(plain.bind(n=n)) for n in range(20)])
            await engine.insert(plain.bind(n=0))
        assert len((await engine.list(limit=100)).items) == 63


@pytest.mark.parametrize("close", [False, True], ids=["cancelled", "and closed"])
async def test_others_hear_of_a_row_whose_insert_was_cancelled(build: Build, sql: Sql, close: bool) -> None:
    """R19: it is there, and carried no notification itself: somebody is told of it soon, not at the next poll."""
    async with build(plain, poll_interval=60.0) as worker, build(plain, queues={}).client() as engine:
        await (await engine.insert(plain.bind(n=0))).result(timeout=LONG)
        fetch, there = engine._session.fetch, asyncio.Event()

        async def slow(request: Request) -> list[Row]:
            rows = await fetch(request)
            if request.statement.name.startswith("inserting/"):
                there.set()
                await asyncio.Event().wait()
            return rows

        engine._session.fetch = slow  # type: ignore[method-assign]
        engine._bell._sent["default"] = time.monotonic()  # another has just told
        waiting = asyncio.create_task(engine.insert(plain.bind(n=7)))
        await asyncio.wait_for(there.wait(), LONG)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        engine._session.fetch = fetch  # type: ignore[method-assign]
        if close:
            await engine.stop()
        await eventually(lambda: sql("SELECT 1 FROM {s}.finished WHERE result = '7'"))
        assert worker.settings.poll_interval == 60.0


async def test_an_item_of_insert_many_is_no_instance(build: Build) -> None:
    """Section 14: whichever options the call gives."""
    async with build(plain, queues={}).client() as engine:
        for options in ({}, {"key": "k"}, {"on_conflict": "replace"}):
            with pytest.raises(InvalidArgument):
                await engine.insert(BulkItem(plain.bind(n=1), key="k"), **options)  # type: ignore[arg-type]
        assert (await engine.list()).items == []


async def test_a_call_that_is_cancelled_leaves_no_statement_to_the_next(
    build: Build, sql: Sql, database_url: str
) -> None:
    """The connection is kept only at rest."""
    async with build(plain, queues={}, pool_size=1).client() as engine:
        await engine.insert(plain.bind(n=1), key="k")
        async with await psycopg.AsyncConnection.connect(database_url) as other:
            await other.execute(f"LOCK TABLE {engine.settings.schema}.instances".encode())
            waiting = asyncio.create_task(engine.insert(plain.bind(n=2)))
            query = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
            await eventually(lambda: sql(query, f"gen_durable {engine.settings.name}"[:63]))
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        handle = await engine.insert(plain.bind(n=3))
        assert (await handle.get()).status == "runnable"
        assert [found.id for found in (await engine.list()).items if found.key is None] == [handle.id]
