"""Transactional steps on a small pool in a storm of kills, cancels, timeouts and errors: nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from typing import Any

import pytest
from engine_support import Build, Sql, ended, eventually
from transactional_support import Notes, idle_backends, stepping

from gen_durable import Context, job

pytestmark = pytest.mark.crash

BACKENDS = "SELECT pid, state FROM pg_stat_activity WHERE application_name = %s"
SEED = int(os.environ.get("GEN_DURABLE_STORM_SEED", "1"))
COUNT = int(os.environ.get("GEN_DURABLE_STORM_COUNT", "150"))


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_storm_loses_and_doubles_nothing(build: Build, notes: Notes, sql: Sql, is_async: bool) -> None:
    """R3, R4, R5, R27."""
    rng = random.Random(SEED)
    marks: list[tuple[int, str]] = []
    await sql(f"ALTER TABLE {notes.table} ADD CONSTRAINT once UNIQUE (what) DEFERRABLE INITIALLY DEFERRED")

    def fate(ctx: Context) -> str:
        return rng.choice(["ok"] * 6 + ["raise", "twice", "slow", "sleep", "end", "self"])

    @job(transactional=True, max_attempts=1)
    async def on_loop(ctx: Context) -> str:
        how = fate(ctx)
        row = await (await ctx.conn.execute("SELECT current_setting('gen_durable.step'), txid_current()")).fetchone()
        marks.append((ctx.id, row[0]))
        await notes.add(ctx, f"n{ctx.id}")
        if how == "raise":
            raise ValueError("meant")
        if how == "twice":
            await notes.add(ctx, f"n{ctx.id}")
        if how == "slow":
            await ctx.conn.execute("SELECT pg_sleep(0.02)")
        if how == "sleep":
            await asyncio.sleep(0.02)
        if how == "self":
            await ctx.conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return how

    @job(transactional=True, max_attempts=1)
    def in_thread(ctx: Context) -> str:
        how = fate(ctx)
        row = ctx.conn.execute("SELECT current_setting('gen_durable.step'), txid_current()").fetchone()
        marks.append((ctx.id, row[0]))
        ctx.conn.execute(notes.insert, (ctx.id, f"n{ctx.id}"))
        if how == "raise":
            raise ValueError("meant")
        if how == "twice":
            ctx.conn.execute(notes.insert, (ctx.id, f"n{ctx.id}"))
        if how in ("slow", "sleep"):
            ctx.conn.execute("SELECT pg_sleep(0.02)")
        if how == "self":
            ctx.conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return how

    one = on_loop if is_async else in_thread
    size = 3
    most = 0
    async with build(one, transaction_pool_size=size, queues={"default": 12}, poll_interval=0.2) as engine:
        first = engine._worker
        turns = engine._worker._transactions._turns[is_async]
        over = asyncio.Event()

        async def kill() -> None:
            nonlocal most
            dice = random.Random(SEED + 1)
            while not over.is_set():
                await asyncio.sleep(dice.random() * 0.03)
                rows = await sql(
                    "SELECT pid, state FROM pg_stat_activity WHERE application_name = %s", stepping(engine)
                )
                most = max(most, len(rows))
                if rows:
                    await sql("SELECT pg_terminate_backend(%s)", dice.choice(rows)[0])

        async def cancels(handles: list[Any]) -> None:
            dice = random.Random(SEED + 2)
            while not over.is_set():
                await asyncio.sleep(dice.random() * 0.01)
                await engine.cancel(dice.choice(handles).id)

        handles = [await engine.insert(one.bind()) for _ in range(COUNT)]
        storm = [asyncio.create_task(kill()), asyncio.create_task(cancels(handles))]
        found = await asyncio.gather(*[ended(handle, 90) for handle in handles])
        over.set()
        await asyncio.gather(*storm)
        assert all(mark == str(id_) for id_, mark in marks)
        wrote = Counter(await notes.all())
        assert wrote == Counter(f"n{s.id}" for s in found if s.status == "done")

        async def all_back() -> bool:
            return turns._free == size and not turns._waiting

        await eventually(all_back)
        rows = await idle_backends(sql, engine)
        assert len(rows) <= size
        assert len(turns._kept) <= size
        assert engine._worker is first, "the worker crashed"

    async def gone() -> bool:
        return not await sql(BACKENDS, stepping(engine))

    await eventually(gone)
