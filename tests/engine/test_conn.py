"""Calls in the caller's own transaction, on every kind of connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest
from conn_kinds import KINDS, Caller, blockingly, is_blocking
from engine_support import LONG, Build, Sql

from gen_durable import Await, BulkItem, Context, Done, Engine, Machine, job, step

Call: TypeAlias = Callable[..., Awaitable[Any]]
Work: TypeAlias = Callable[[Caller, Call], Awaitable[None]]


@job
async def plain(n: int) -> int:
    return n


class Waits(Machine):
    n: int = 0

    @step
    async def start(self, ctx: Context) -> Await:
        return Await("go", then=self.end)

    @step
    async def end(self, ctx: Context) -> Done:
        return Done(ctx.awaited[0].payload)


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lend(kind: str, database_url: str, build: Build) -> Callable[[Engine, Work], Awaitable[None]]:
    """Runs a scenario with a caller of the kind, and the client that such a caller has."""

    async def run(engine: Engine, work: Work) -> None:
        async def scenario() -> None:
            async with KINDS[kind](database_url) as caller:
                if not is_blocking(kind):

                    async def call(name: str, *args: Any, **options: Any) -> Any:
                        return await getattr(engine, name)(*args, **options)

                    await work(caller, call)
                    return
                with engine.sync_client() as client:

                    async def call_sync(name: str, *args: Any, **options: Any) -> Any:
                        return getattr(client, name)(*args, **options)

                    await work(caller, call_sync)

        await blockingly(kind, scenario())

    return run


Lend: TypeAlias = Callable[[Engine, Work], Awaitable[None]]


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


@pytest.mark.parametrize("what", ["insert", "insert_many", "signal"])
async def test_it_is_there_if_and_only_if_the_transaction_commits(
    lend: Lend, build: Build, sql: Sql, what: str
) -> None:
    """R20: commit, rollback, rollback to a savepoint, and an error of the caller's own, with each kind."""
    loop = asyncio.get_running_loop()
    blocking: list[bool] = []

    async def there() -> list[str]:
        if blocking[0]:
            return asyncio.run_coroutine_threadsafe(made(sql, what), loop).result(LONG)
        return await made(sql, what)

    async def work(caller: Caller, call: Call) -> None:
        blocking.append(caller.blocking)
        conn = caller.conn
        await caller.begin()
        await make(call, what, conn, "a")
        assert await there() == []
        await caller.commit()
        assert await there() == ["a"]

        await caller.begin()
        await make(call, what, conn, "b")
        await caller.rollback()
        assert await there() == ["a"]

        await caller.begin()
        await make(call, what, conn, "c")
        await caller.save()
        await make(call, what, conn, "d")
        await caller.back()
        await make(call, what, conn, "e")
        await caller.commit()
        assert await there() == ["a", "c", "e"]

        await caller.begin()
        await make(call, what, conn, "f")
        with pytest.raises(Exception, match="division by zero"):
            await caller.execute("SELECT 1/0")
        await caller.rollback()
        assert await there() == ["a", "c", "e"]

    async with build(plain, Waits, queues={}).client() as engine:
        await engine.insert(Waits(), key="parked")
        await lend(engine, work)
