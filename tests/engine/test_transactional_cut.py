"""The connection is lost behind each of the answers of the commit's exchange."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg
import pytest
from engine_support import Build, Sql, ended, eventually
from transactional_support import Notes, idle_backends

from gen_durable import Context, Done, Machine, Next, step
from gen_durable._store import exchange


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("place", range(7))
async def test_cut(
    build: Build, notes: Notes, sql: Sql, monkeypatch: pytest.MonkeyPatch, place: int, is_async: bool
) -> None:
    """R3, R5, R27: each step's write is there once, however its answer was lost."""
    armed = [False]
    go = threading.Event()
    inside = threading.Event()
    original_executing, original = exchange.executing, exchange._received
    behind_of: dict[int, int] = {}

    def executing(pgconn: Any, requests: Any, words: Any, behind: Any) -> Any:
        behind_of[id(pgconn)] = len(behind)
        return original_executing(pgconn, requests, words, behind)

    def received(pgconn: Any, before: list[Any]) -> Any:
        if armed[0] and behind_of.get(id(pgconn)) and len(before) == place:
            armed[0] = False
            pgconn.finish()
            raise psycopg.OperationalError("cut")
        return (yield from original(pgconn, before))

    from gen_durable._store import transaction as store

    monkeypatch.setattr(store, "executing", executing)
    monkeypatch.setattr(exchange, "_received", received)

    class Loop(Machine):
        @step(transactional=True)
        async def one(self, ctx: Context) -> Next:
            inside.set()
            await asyncio.to_thread(go.wait, 15)
            await notes.add(ctx, f"one {ctx.id}")
            return Next(self.two)

        @step(transactional=True)
        async def two(self, ctx: Context) -> Done:
            await notes.add(ctx, f"two {ctx.id}")
            return Done(1)

    class Thread(Machine):
        @step(transactional=True)
        def one(self, ctx: Context) -> Next:
            inside.set()
            go.wait(15)
            ctx.conn.execute(notes.insert, (ctx.id, f"one {ctx.id}"))
            return Next(self.two)

        @step(transactional=True)
        def two(self, ctx: Context) -> Done:
            ctx.conn.execute(notes.insert, (ctx.id, f"two {ctx.id}"))
            return Done(1)

    one = Loop if is_async else Thread
    async with build(one, transaction_pool_size=1, queues={"default": 4}) as engine:
        first = engine._worker
        turns = first._transactions._turns[is_async]
        handles = [await engine.insert(one()) for _ in range(4)]
        await asyncio.to_thread(inside.wait, 15)

        async def waiting() -> bool:
            return len(turns._waiting) == 3

        await eventually(waiting)
        armed[0] = True
        go.set()
        for handle in handles:
            assert (await ended(handle)).status == "done"
        assert not armed[0] or place > 5
        assert engine._worker is first
        assert sorted(await notes.all()) == sorted(f"{w} {h.id}" for h in handles for w in ("one", "two"))

        async def given_back() -> bool:  # which follows the answer to the last commit
            return turns._free == 1

        await eventually(given_back)
        assert len(await idle_backends(sql, engine)) == 1
