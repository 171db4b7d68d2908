"""Turns that must come back, and connections that must not stay, wherever a cancel hits."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg
import pytest
from engine_support import Build, Sql, ended, eventually

from gen_durable import Context, job
from gen_durable._runtime import transactions as module

pytestmark = pytest.mark.usefixtures("notes")


async def test_a_blocking_connection_that_comes_when_its_step_is_cancelled_is_closed(
    build: Build, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread goes on; what it opens is nobody's."""
    go, begun = threading.Event(), threading.Event()
    made: list[Any] = []
    original = module.open_step_sync

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert go.wait(15)
        made.append(original(*arguments))
        return made[-1]

    @job(transactional=True, max_attempts=1)
    def in_thread(ctx: Context) -> None:
        ctx.conn.execute("SELECT 1")

    async with build(in_thread, transaction_pool_size=1) as engine:
        monkeypatch.setattr(module, "open_step_sync", slow)
        handle = await engine.insert(in_thread.bind())
        await asyncio.to_thread(begun.wait, 15)
        await engine.cancel(handle.id)
        turns = engine._worker._transactions._turns[False]

        async def given_back() -> bool:
            return turns._free == 1

        assert (await ended(handle)).status == "cancelled"
        await eventually(given_back)
        go.set()

        async def opened() -> bool:
            return bool(made)

        await eventually(opened)
        await (await engine.insert(in_thread.bind())).result(timeout=15)
        assert made[0].closed, "open, and in no list: one more than the pool's size"


async def test_a_session_of_a_thread_whose_begin_failed_gives_its_turn_back_when_it_is_cancelled(
    build: Build, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``begin`` has to discard the session; the cancel comes amid that."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    orm = pytest.importorskip("sqlalchemy.orm")
    database = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database_url))
    maker = orm.sessionmaker(database)
    kind = module.ThreadSessionTransaction
    invalidating, go = threading.Event(), threading.Event()
    fails = True

    @job(transactional=True, max_attempts=1)
    def in_thread(ctx: Context) -> int:
        ctx.session.execute(sqlalchemy.text("SELECT 1"))
        return 1

    begin, invalidate = kind.begin, kind._invalidate

    async def failing(self: Any) -> None:
        await begin(self)
        if fails:
            raise psycopg.OperationalError("as if it broke")

    def slow(self: Any) -> None:
        invalidating.set()
        go.wait(15)
        invalidate(self)

    try:
        async with build(in_thread, transaction_pool_size=1, sessionmaker=maker) as engine:
            monkeypatch.setattr(kind, "begin", failing)
            monkeypatch.setattr(kind, "_invalidate", slow)
            handle = await engine.insert(in_thread.bind())
            assert await asyncio.to_thread(invalidating.wait, 15)
            await engine.cancel(handle.id)
            assert (await ended(handle)).status == "cancelled"
            fails = False
            go.set()
            assert await (await engine.insert(in_thread.bind())).result(timeout=5) == 1, "the only turn is lost"
    finally:
        go.set()
        database.dispose()
