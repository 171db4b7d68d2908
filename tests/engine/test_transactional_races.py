"""The statement of an end that goes alone, met by others on the row's lock, under every isolation."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from engine_support import Build, Seen, Sql, ended, eventually
from transactional_support import Notes, idle_backends, stepping

from gen_durable import Context, job

RECLAIM = "UPDATE {s}.instances SET status = 0, worker = NULL, rev = rev + 1, attempt = attempt + 1 WHERE status = 2"


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("other", ["signal", "signal before", "cancel", "reap", "watch", "rolled back", "other signal"])
async def test_others_on_the_row(
    build: Build, notes: Notes, sql: Sql, database_url: str, migrated: str, level: str, other: str
) -> None:
    """R4, R5, R10, R12."""
    inside: asyncio.Queue[int] = asyncio.Queue()
    go = asyncio.Event()
    runs = 0

    @job(transactional=True, max_attempts=1)
    async def slow(ctx: Context) -> int:
        nonlocal runs
        runs += 1
        await ctx.conn.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        await notes.add(ctx, f"run {runs}")
        inside.put_nowait(runs)
        await go.wait()
        return runs

    engine = build(slow, poll_interval=0.2, transaction_pool_size=2)
    Seen(engine, "stale")
    async with engine, await psycopg.AsyncConnection.connect(database_url) as second:
        handle = await engine.insert(slow.bind())
        await asyncio.wait_for(inside.get(), 15)
        if other == "signal before":
            await engine.signal(handle.id, "before", 1)
        if other in ("signal", "signal before", "other signal"):
            await engine.signal(handle.id, "x", {"a": 1}, conn=second)
        elif other == "cancel":
            await engine.cancel(handle.id, conn=second)
        elif other == "watch":
            await second.execute(f"UPDATE {migrated}.instances SET watched = true WHERE id = {handle.id}".encode())
        else:
            await second.execute(RECLAIM.replace("{s}", migrated).encode())
        go.set()
        waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
        await eventually(lambda: sql(waiting, stepping(engine)))
        await (second.rollback() if other in ("rolled back", "other signal") else second.commit())
        found = await ended(handle)
        left = await sql("SELECT * FROM {s}.signals")
        assert not left
        if other == "cancel":
            assert found.status == "cancelled"
            await idle_backends(sql, engine)
            assert await notes.all() == []
        else:
            assert found.status == "done"
            assert await notes.all() == [f"run {found.result}"]
            assert found.attempt == (1 if other == "reap" else 0)
        assert len(await idle_backends(sql, engine)) <= 2
