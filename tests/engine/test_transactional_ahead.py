"""A step that waits for a connection finds its transaction begun, in the message that committed the one before it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg
import pytest
from engine_support import Build, Sql, ended, eventually
from transactional_support import Notes, idle_backends, stepping

from gen_durable import Context, Engine, job
from gen_durable._runtime import thread_transaction, transaction

pytestmark = pytest.mark.usefixtures("notes")

MOMENT = "SELECT extract(epoch FROM now()), current_setting('gen_durable.step')"


class Begun:
    """How many transactions were begun by a message of their own, and how many in the commit of another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alone = self.ahead = 0
        for module, name in ((transaction, "begin"), (thread_transaction, "begin_sync"), (transaction, "take_over")):
            monkeypatch.setattr(module, name, self._counting(name, getattr(module, name)))

    def _counting(self, name: str, call: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            if name == "take_over":
                self.ahead += 1
            else:
                self.alone += 1
            return call(*arguments)

        return counted


async def until_waiting(engine: Engine, count: int, *, is_async: bool = True) -> None:
    """Waits until so many steps wait for a connection."""
    turns = engine._worker._transactions._turns[is_async]  # type: ignore[union-attr]

    async def so_many() -> bool:
        return len(turns._waiting) == count

    await eventually(so_many)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Begun:
    return Begun(monkeypatch)


@pytest.mark.parametrize("is_async", [True, False])
async def test_steps_that_wait_are_begun_by_the_commit_before(
    build: Build, begun: Begun, sql: Sql, is_async: bool
) -> None:
    """R6: each in a transaction of its own, under its own mark, that began no earlier than the step was ready."""
    go, at_the_gate = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def until_all_wait() -> None:
        at_the_gate.set()
        await asyncio.to_thread(go.wait, 15)

    @job(transactional=True)
    async def on_the_loop(ctx: Context) -> tuple[float, str]:
        if not go.is_set():
            await until_all_wait()
        row = await (await ctx.conn.execute(MOMENT)).fetchone()
        return float(row[0]), row[1]

    @job(transactional=True)
    def in_a_thread(ctx: Context) -> tuple[float, str]:
        if not go.is_set():
            asyncio.run_coroutine_threadsafe(until_all_wait(), loop).result()
        row = ctx.conn.execute(MOMENT).fetchone()
        return float(row[0]), row[1]

    step = on_the_loop if is_async else in_a_thread
    async with build(step, transaction_pool_size=1, queues={"default": 6}) as engine:
        handles = [await engine.insert(step.bind()) for _ in range(6)]
        await asyncio.wait_for(at_the_gate.wait(), 15)
        claimed = "SELECT count(*), extract(epoch FROM max(updated_at)) FROM {s}.instances WHERE status = 2"

        async def all_claimed() -> Any:
            return (rows := await sql(claimed))[0][0] == 6 and rows

        ready = float((await eventually(all_claimed))[0][1])
        await until_waiting(engine, 5, is_async=is_async)
        go.set()
        seen = [tuple(await handle.result(timeout=15)) for handle in handles]
        assert [mark for _, mark in seen] == [str(handle.id) for handle in handles]
        assert (begun.alone, begun.ahead) == (1, 5)
        moments = [moment for moment, _ in seen]
        assert len(set(moments)) == 6, "a transaction each"
        assert min(moments[1:]) > ready
        assert len(await idle_backends(sql, engine)) == 1


async def test_a_step_that_does_not_wait_begins_for_itself(build: Build, begun: Begun, sql: Sql) -> None:
    """Nothing is begun on the chance that somebody comes."""

    @job(transactional=True)
    async def alone(ctx: Context) -> None:
        await ctx.conn.execute("SELECT 1")

    async with build(alone, transaction_pool_size=1) as engine:
        for _ in range(3):
            await (await engine.insert(alone.bind())).result(timeout=15)
        assert len(await idle_backends(sql, engine)) == 1
    assert (begun.alone, begun.ahead) == (3, 0)


async def test_its_isolation_can_still_be_chosen(build: Build, begun: Begun, sql: Sql) -> None:
    """Section 9: nothing has been read in it yet."""
    inside, go = asyncio.Event(), asyncio.Event()

    async def both() -> bool:  # who waits for a result writes into the row, which may be a conflict
        found = await sql("SELECT count(*) FROM {s}.finished WHERE result = %s", '"repeatable read"')
        return bool(found == [(2,)])

    @job(transactional=True)
    async def strict(ctx: Context) -> str:
        await ctx.conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        inside.set()
        await go.wait()
        return str((await (await ctx.conn.execute("SHOW transaction_isolation")).fetchone())[0])

    async with build(strict, transaction_pool_size=1, queues={"default": 2}) as engine:
        for _ in range(2):
            await engine.insert(strict.bind())
        await asyncio.wait_for(inside.wait(), 15)
        await until_waiting(engine, 1)
        go.set()
        await eventually(both)
    assert (begun.alone, begun.ahead) == (1, 1)


async def test_a_step_cancelled_as_its_transaction_begins_leaves_no_trace(
    build: Build, notes: Notes, sql: Sql, database_url: str, migrated: str, begun: Begun
) -> None:
    """R6, R19: what was begun for it is rolled back, and the connection is there for the next."""
    inside, go = asyncio.Event(), asyncio.Event()

    @job(transactional=True)
    async def noted(ctx: Context, name: str) -> None:
        if name == "first":
            inside.set()
            await go.wait()
        await notes.add(ctx, name)

    engine = build(noted, transaction_pool_size=1, queues={"default": 2})
    async with engine, await psycopg.AsyncConnection.connect(database_url) as locker:
        first = await engine.insert(noted.bind(name="first"))
        await asyncio.wait_for(inside.wait(), 15)
        second = await engine.insert(noted.bind(name="second"))
        await until_waiting(engine, 1)
        await locker.execute(f"SELECT FROM {migrated}.instances WHERE id = {first.id} FOR UPDATE".encode())
        go.set()  # its commit, and the begin behind it, wait for the row
        waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
        await eventually(lambda: sql(waiting, stepping(engine)))
        await engine.cancel(second.id)
        await until_waiting(engine, 0)
        await locker.commit()
        await first.result(timeout=15)
        assert len(await idle_backends(sql, engine)) == 1
        await (await engine.insert(noted.bind(name="third"))).result(timeout=15)
        assert (await second.get()).status == "cancelled"
    assert await notes.all() == ["first", "third"]
    assert (begun.alone, begun.ahead) == (2, 0)


async def test_a_commit_that_fails_begins_nothing(build: Build, notes: Notes, sql: Sql, begun: Begun) -> None:
    """R5: a deferred constraint refuses it; the step that waited goes on all the same."""
    inside, go = asyncio.Event(), asyncio.Event()
    await sql(f"ALTER TABLE {notes.table} ADD CONSTRAINT once UNIQUE (what) DEFERRABLE INITIALLY DEFERRED")

    @job(transactional=True, max_attempts=1)
    async def twice(ctx: Context, count: int) -> None:
        inside.set()
        await go.wait()
        for _ in range(count):
            await notes.add(ctx, f"of {count}")

    async with build(twice, transaction_pool_size=1, queues={"default": 2}) as engine:
        bad = await engine.insert(twice.bind(count=2))
        await asyncio.wait_for(inside.wait(), 15)
        good = await engine.insert(twice.bind(count=1))
        await until_waiting(engine, 1)
        go.set()
        await good.result(timeout=15)
        assert "once" in str((await ended(bad)).error)
        assert len(await idle_backends(sql, engine)) == 1
    assert await notes.all() == ["of 1"]
    assert begun.ahead == 0
