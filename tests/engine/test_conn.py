"""Calls in the caller's own transaction, on every kind of connection."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from conn_kinds import KINDS, Call, Caller, elsewhere, lend, sa_url
from engine_support import LONG, Build, Seen, Sql, eventually
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as asa
from sqlalchemy.pool import NullPool

from gen_durable import Await, BulkItem, Context, Done, Engine, Handle, Machine, job, step


@job
async def plain(n: int) -> int:
    return n


class Waits(Machine, queue="waits"):  # in a queue with several lanes a worker looks again by itself
    n: int = 0

    @step
    async def start(self, ctx: Context) -> Await:
        return Await("go", then=self.end)

    @step
    async def end(self, ctx: Context) -> Done:
        return Done(ctx.awaited[0].payload)


@pytest.fixture(params=[kind for kind in KINDS if kind.startswith("psycopg ") or "autocommit" not in kind])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def make(call: Call, what: str, conn: Any, key: str) -> None:
    """One of the calls; it leaves one row of the key, or one signal in its inbox."""
    if what == "insert":
        assert (await call("insert", plain.bind(n=1), key=key, conn=conn)).key == key
    elif what == "insert_many":
        (one,) = await call("insert_many", [BulkItem(plain.bind(n=1), key=key)], conn=conn)
        assert not one.duplicate
    else:
        assert await call("signal", "parked", "go", {"é": [1, None]}, dedup_key=key, conn=conn) is True


async def made(sql: Sql, what: str) -> list[str]:
    """The keys of what is there, to everybody else."""
    if what == "signal":
        return [key for (key,) in await sql("SELECT dedup_key FROM {s}.signals ORDER BY id")]
    return [key for (key,) in await sql("SELECT key FROM {s}.instances WHERE key <> 'parked' ORDER BY id")]


async def test_it_is_there_if_and_only_if_the_transaction_commits(
    kind: str, database_url: str, build: Build, sql: Sql
) -> None:
    """R20: commit, rollback, rollback to a savepoint, and an error of the caller's own, with each kind."""
    loop = asyncio.get_running_loop()

    async def work(caller: Caller, call: Call) -> None:
        for what in ("insert", "insert_many", "signal"):
            await one(caller, call, what)

    async def one(caller: Caller, call: Call, what: str) -> None:
        async def there() -> list[str]:
            keys = await elsewhere(caller, loop, made(sql, what))
            return [key.partition(" ")[2] for key in keys if key.startswith(f"{what} ")]

        conn = caller.conn
        await caller.begin()
        await make(call, what, conn, f"{what} a")
        assert await there() == []
        await caller.commit()
        assert await there() == ["a"]

        await caller.begin()
        await make(call, what, conn, f"{what} b")
        await caller.rollback()
        assert await there() == ["a"]

        await caller.begin()
        await make(call, what, conn, f"{what} c")
        await caller.save()
        await make(call, what, conn, f"{what} d")
        await caller.back()
        await make(call, what, conn, f"{what} e")
        await caller.commit()
        assert await there() == ["a", "c", "e"]

        await caller.begin()
        await make(call, what, conn, f"{what} f")
        with pytest.raises(Exception, match="division by zero"):
            await caller.execute("SELECT 1/0")
        await caller.rollback()
        assert await there() == ["a", "c", "e"]

    async with build(plain, Waits, queues={}).client() as engine:
        await engine.insert(Waits(), key="parked")
        await lend(kind, database_url, engine, work)


async def is_parked(handle: Handle) -> bool:
    return (await handle.get()).status == "awaiting_signal"


async def is_calm(engine: Engine) -> bool:
    """Nothing is being claimed, and nothing is left to look for: only word from outside brings the worker to look."""
    worker = engine._worker
    assert worker is not None
    return not worker._claimer.claiming and all(queue.empty for queue in worker.queues.values())


# One of each driver and library.
WAKING = [
    "psycopg async", "psycopg autocommit", "psycopg2", "asyncpg", "sqlalchemy psycopg session",
    "sqlalchemy psycopg async session", "sqlalchemy asyncpg async connection", "django",
]  # fmt: skip


@pytest.mark.parametrize("kind", WAKING, indirect=True)
@pytest.mark.parametrize("same_process", [False, True], ids=["elsewhere", "same process"])
async def test_a_worker_starts_it_at_the_commit_and_not_before(
    kind: str, database_url: str, build: Build, same_process: bool
) -> None:
    """R19, R20: the worker hears of it by the commit's notification alone, its poll is a minute away; what was inserted
    after it, and committed before, it has run by then."""
    loop = asyncio.get_running_loop()
    worker = build(plain, Waits, queues={"default": 50, "waits": 5}, poll_interval=60)
    steps = Seen(worker, "step")

    async def run_another() -> list[int]:
        handle = await worker.insert(plain.bind(n=2))
        await handle.result(LONG)
        await eventually(lambda: is_calm(worker))
        return [event.id for event in steps.all]

    async def work(caller: Caller, call: Call) -> None:
        await caller.begin()
        id_ = (await call("insert", plain.bind(n=1), conn=caller.conn)).id
        assert id_ not in await elsewhere(caller, loop, run_another())
        await caller.commit()
        assert await elsewhere(caller, loop, worker.result(id_, LONG)) == 1

        await caller.begin()
        await call("signal", "parked", "go", 7, conn=caller.conn)
        id_ = (await elsewhere(caller, loop, worker.get("parked"))).id
        assert (await elsewhere(caller, loop, run_another())).count(id_) == 1
        await caller.commit()
        assert await elsewhere(caller, loop, worker.result(id_, LONG)) == 7

    async with worker:
        parked = await worker.insert(Waits(), key="parked")
        await eventually(lambda: is_parked(parked))
        if same_process:
            await lend(kind, database_url, worker, work)
        else:
            async with build(plain, Waits, queues={}).client() as client:
                await lend(kind, database_url, client, work)


async def test_the_async_client_takes_blocking_connections_too(database_url: str, build: Build, sql: Sql) -> None:
    """R20: where a program has both; the loop waits for each statement."""
    async with build(plain, queues={}).client() as engine:
        with psycopg.connect(database_url) as conn:
            handle = await engine.insert(plain.bind(n=1), key="a", conn=conn)
            assert await handle.cancel(conn=conn) is True
            conn.rollback()
            await engine.insert_many([plain.bind(n=1), BulkItem(plain.bind(n=2), key="b")], conn=conn)
        database = sa.create_engine(sa_url(database_url, "psycopg2"))
        with orm.Session(database) as session:
            await engine.insert(plain.bind(n=1), key="c", conn=session)
            session.commit()
        database.dispose()
        assert await sql("SELECT key FROM {s}.all_instances ORDER BY id") == [(None,), ("b",), ("c",)]


async def test_a_rolled_back_insert_wakes_nobody_and_leaves_the_worker_as_it_was(
    database_url: str, build: Build
) -> None:
    """R20: the worker of the same process neither holds places for it nor starts it; the next call is as ever."""
    async with build(plain, poll_interval=60) as engine:
        steps = Seen(engine, "step")

        async def work(caller: Caller, call: Call) -> None:
            for _ in range(3):
                await caller.begin()
                await call("insert_many", [plain.bind(n=1)] * 100, conn=caller.conn)
                await caller.rollback()

        await lend("psycopg async", database_url, engine, work)
        assert await (await engine.insert(plain.bind(n=5))).result(LONG) == 5
        assert len(steps.all) == 1
        assert engine._worker is not None
        assert all(queue.load == 0 and queue.expected == 0 for queue in engine._worker.queues.values())


@pytest.mark.parametrize("options", [{"stream_results": True}, {"yield_per": 10}], ids=["stream_results", "yield_per"])
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg2"])
async def test_a_sqlalchemy_engine_that_streams_its_rows(
    database_url: str, build: Build, driver: str, options: dict[str, Any]
) -> None:
    """R20: set up in any way: what is meant for reading, a cursor of the server's, is not used."""
    async with build(plain).client() as engine:
        items = [BulkItem(plain.bind(n=n), key=f"k{n}") for n in range(2)]
        if driver == "psycopg2":
            blocking = sa.create_engine(sa_url(database_url, driver), poolclass=NullPool, execution_options=options)
            with orm.Session(blocking) as plain_session:
                await engine.insert_many(items, conn=plain_session)
                await engine.cancel("k1", conn=plain_session)
                plain_session.commit()
        else:
            made = asa.create_async_engine(sa_url(database_url, driver), poolclass=NullPool, execution_options=options)
            async with asa.AsyncSession(made) as session:
                await engine.insert_many(items, conn=session)
                await engine.cancel("k1", conn=session)
                await session.commit()
        assert sorted(each.status for each in (await engine.list()).items) == ["cancelled", "runnable"]
