"""The end of a worker while steps wait for a connection: no session stays, no write without its outcome."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from engine_support import Build, Sql, ended, eventually
from transactional_support import Notes, idle_backends, stepping

from gen_durable import Context, job

LOST = "UPDATE {s}.instances SET status = 0, worker = NULL, rev = rev + 1 WHERE status = 2 AND id > %s"
REAPED = LOST.replace("id >", "worker = %s AND id =")
BACKENDS = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s"


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("how", ["drain", "dead"])
@pytest.mark.parametrize("blocked", [True, False], ids=["commit blocked", "commit free"])
async def test_a_worker_ends_while_steps_wait(
    build: Build, notes: Notes, sql: Sql, database_url: str, migrated: str, is_async: bool, how: str, blocked: bool
) -> None:
    """R4, R26: drained, or declared dead and its rows given back; the commit that would begin the next may wait."""
    inside, go = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def gate() -> None:
        inside.set()
        await go.wait()

    @job(transactional=True)
    async def on_loop(ctx: Context) -> None:
        await notes.add(ctx, f"{ctx.id}")
        if not go.is_set():
            await gate()

    @job(transactional=True)
    def in_thread(ctx: Context) -> None:
        ctx.conn.execute(notes.insert, (ctx.id, f"{ctx.id}"))
        if not go.is_set():
            asyncio.run_coroutine_threadsafe(gate(), loop).result()

    one = on_loop if is_async else in_thread
    engine = build(
        one, transaction_pool_size=1, queues={"default": 8}, drain_timeout=0.5, poll_interval=0.2, statement_timeout=2.0
    )
    running = -1
    async with await psycopg.AsyncConnection.connect(database_url) as locker:
        async with engine:
            first: Any = engine._worker
            handles = [await engine.insert(one.bind()) for _ in range(8)]
            await asyncio.wait_for(inside.wait(), 15)

            async def waiting() -> bool:
                return len(first._transactions._turns[is_async]._waiting) == 7

            await eventually(waiting)
            if blocked:
                running = (await sql("SELECT min(id) FROM {s}.instances"))[0][0]
                await locker.execute(f"SELECT FROM {migrated}.instances WHERE id = {running} FOR UPDATE".encode())
            go.set()
            if blocked:
                await eventually(lambda: sql(f"{BACKENDS} AND wait_event_type = 'Lock'", stepping(engine)))
            if how == "dead":
                first.declared_dead()
                await sql(LOST, running)

                async def another() -> bool:
                    return engine._worker is not first

                await eventually(another)
                await locker.rollback()
                await sql(REAPED, first.id, running)
                for handle in handles:
                    assert (await ended(handle)).status == "done"
                assert len(await idle_backends(sql, engine)) <= 1
        await locker.rollback()

        async def gone() -> bool:
            return not await sql(BACKENDS, stepping(engine))

        await eventually(gone)
    done = [str(row[0]) for row in await sql("SELECT id FROM {s}.finished")]
    assert sorted(await notes.all()) == sorted(done)
