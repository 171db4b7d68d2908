"""R5: a step that ends its own transaction, or tries to, gets a clear error, and nothing is applied twice."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from engine_support import LONG, Build, Sql, eventually, failure, moment
from transactional_support import Notes, idle_backends

from gen_durable import Backoff, Context, Job, job
from gen_durable.errors import TransactionError

WORDS = [
    "COMMIT",
    "  commit work",
    "END",
    "rollback",
    "ABORT;",
    "BEGIN",
    "START TRANSACTION",
    "PREPARE TRANSACTION 'x'",
]


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
@pytest.mark.parametrize("how", ["commit()", "rollback()", "close()", *WORDS])
async def test_what_would_end_the_transaction_is_refused_before_it_does(
    build: Build, notes: Notes, how: str, is_async: bool
) -> None:
    """R5: nothing was committed; the instance fails at once, for a retry would do the same."""

    @job(transactional=True)
    async def on_the_loop(ctx: Context) -> None:
        await notes.add(ctx, "never")
        if how.endswith("()"):
            await getattr(ctx.conn, how[:-2])()
        else:
            await ctx.conn.execute(how)

    @job(transactional=True)
    def in_a_thread(ctx: Context) -> None:
        ctx.conn.execute(notes.insert, (ctx.id, "never"))
        if how.endswith("()"):
            getattr(ctx.conn, how[:-2])()
        else:
            ctx.conn.execute(how.encode())

    tried = on_the_loop if is_async else in_a_thread
    async with build(tried) as engine:
        handle = await engine.insert(tried.bind())
        error = await failure(handle)
        assert (await handle.get()).attempt == 0
    assert "TransactionEnded" in error["type"]
    assert "would end the step's transaction" in error["message"]
    assert await notes.all() == []


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
async def test_savepoints_by_hand_are_the_step_s_own(build: Build, notes: Notes, is_async: bool) -> None:
    """R5: ROLLBACK TO is no end; autocommit can't be set inside a transaction, by psycopg's own rule."""

    @job(transactional=True)
    async def on_the_loop(ctx: Context) -> None:
        await ctx.conn.execute("SAVEPOINT a")
        await notes.add(ctx, "never")
        await ctx.conn.execute("ROLLBACK TO a")
        await ctx.conn.execute("ROLLBACK WORK TO SAVEPOINT a")
        with pytest.raises(psycopg.ProgrammingError):
            await ctx.conn.set_autocommit(False)
        await notes.add(ctx, "kept")

    @job(transactional=True)
    def in_a_thread(ctx: Context) -> None:
        ctx.conn.execute("SAVEPOINT a")
        ctx.conn.execute(notes.insert, (ctx.id, "never"))
        ctx.conn.execute("ROLLBACK TO a")
        with pytest.raises(psycopg.ProgrammingError):
            ctx.conn.autocommit = False
        ctx.conn.execute(notes.insert, (ctx.id, "kept"))

    tried = on_the_loop if is_async else in_a_thread
    async with build(tried) as engine:
        await (await engine.insert(tried.bind())).result(timeout=15)
    assert await notes.all() == ["kept"]


@pytest.mark.parametrize("again", [False, True], ids=["commit", "commit and begin"])
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
async def test_a_transaction_that_was_ended_behind_our_back_is_found_out(
    build: Build, notes: Notes, sql: Sql, again: bool, is_async: bool
) -> None:
    """R5: by another cursor's COMMIT, also where another transaction was begun: what it did can't be undone, so the
    instance fails without a retry, and what it wrote afterwards goes."""
    words = "/* sly */ COMMIT"

    @job(transactional=True)
    async def on_the_loop(ctx: Context) -> None:
        await notes.add(ctx, "before")
        await ctx.conn.execute(words)
        if again:
            await ctx.conn.execute("/* sly */ BEGIN")
            await notes.add(ctx, "after")

    @job(transactional=True)
    def in_a_thread(ctx: Context) -> None:
        ctx.conn.execute(notes.insert, (ctx.id, "before"))
        ctx.conn.execute(words)
        if again:
            ctx.conn.execute("/* sly */ BEGIN")
            ctx.conn.execute(notes.insert, (ctx.id, "after"))

    tried = on_the_loop if is_async else in_a_thread
    async with build(tried) as engine:
        handle = await engine.insert(tried.bind())
        error = await failure(handle)
        assert (await handle.get()).attempt == 0
        await idle_backends(sql, engine)
    assert "TransactionEnded" in error["type"]
    assert "has ended its transaction" in error["message"]
    assert await notes.all() == ["before"]


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
async def test_a_step_that_fails_behind_a_commit_of_its_own_is_not_run_again(
    build: Build, notes: Notes, is_async: bool
) -> None:
    """R5: what it has committed would be applied twice by its retry; on_error would not know of it."""

    class OnTheLoop(Job, transactional=True, retry=Backoff(max_attempts=3, initial=0.0, jitter=False)):
        async def run(self, ctx: Context) -> None:
            await notes.add(ctx, f"attempt {ctx.attempt}")
            await ctx.conn.execute("/* sly */ COMMIT")
            raise ValueError("too late")

    class InAThread(Job, transactional=True, retry=Backoff(max_attempts=3, initial=0.0, jitter=False)):
        def run(self, ctx: Context) -> None:
            ctx.conn.execute(notes.insert, (ctx.id, f"attempt {ctx.attempt}"))
            ctx.conn.execute("/* sly */ COMMIT")
            raise ValueError("too late")

    tried = OnTheLoop if is_async else InAThread
    async with build(tried) as engine:
        error = await failure(await engine.insert(tried()))
    assert "TransactionEnded" in error["type"]
    assert "ValueError: too late" in error["message"]
    assert await notes.all() == ["attempt 0"]


@pytest.mark.parametrize("how", ["conn", "sql"])
async def test_a_step_that_cancels_itself_in_its_transaction_is_told(
    build: Build, notes: Notes, migrated: str, how: str
) -> None:
    """R3, R25: the cancel is rolled back with the outcome that it makes impossible: that is the step's error, and no
    claim is left that nobody runs."""

    class Cancels(Job, max_attempts=1, transactional=True):
        async def run(self, ctx: Context) -> None:
            await notes.add(ctx, "never")
            if how == "conn":
                await ctx.client.cancel(ctx.id, conn=ctx.conn)
            else:
                await ctx.conn.execute(f"SELECT {migrated}.cancel(%s::bigint)", (ctx.id,))

    async with build(Cancels) as engine:
        error = await failure(await engine.insert(Cancels()))
    assert "TransactionError" in error["type"]
    assert "has ended its own instance" in error["message"]
    assert await notes.all() == []


async def test_a_statement_that_is_not_at_its_end_is_told(build: Build, sql: Sql) -> None:
    """R5: a stream that was left open makes the connection unusable: it is closed, and the step gets an error."""

    class Leaves(Job, max_attempts=1, transactional=True):
        async def run(self, ctx: Context) -> None:
            self.__dict__["kept"] = stream = ctx.conn.cursor().stream("SELECT generate_series(1, 10)")
            await anext(stream)

    async with build(Leaves) as engine:
        error = await failure(await engine.insert(Leaves()))
        assert await idle_backends(sql, engine) == []
    assert "still under way" in error["message"]


async def test_what_a_step_discards_of_its_session_costs_a_run(build: Build, notes: Notes) -> None:
    """R5: DEALLOCATE ALL takes our prepared statements too: the step runs again on another connection, unharmed."""
    runs: list[Any] = []

    @job(transactional=True)
    async def deallocate(ctx: Context, n: int) -> int:
        runs.append((n, ctx.attempt))
        await notes.add(ctx, str(n))
        if n and len(runs) < 3:
            await ctx.conn.execute("DEALLOCATE ALL")
        return n

    # One connection: the first step has prepared on it what the second one throws away.
    async with build(deallocate, transaction_pool_size=1) as engine:
        for n in range(2):
            assert await (await engine.insert(deallocate.bind(n=n))).result(timeout=15) == n
    assert runs == [(0, 0), (1, 0), (1, 0)]
    assert await notes.all() == ["0", "1"]


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
async def test_rollbacks_of_savepoints_cost_no_run(build: Build, notes: Notes, is_async: bool) -> None:
    """R5: psycopg deallocates all that is prepared after a rollback: what the commit needs is prepared anew."""
    runs: list[int] = []

    @job(transactional=True)
    async def on_the_loop(ctx: Context, n: int) -> None:
        runs.append(n)
        for _ in range(3):
            await notes.add(ctx, str(n))  # often enough to be prepared
        if n % 2:
            async with ctx.conn.transaction():
                await notes.add(ctx, "never")
                raise psycopg.Rollback

    @job(transactional=True)
    def in_a_thread(ctx: Context, n: int) -> None:
        runs.append(n)
        for _ in range(3):
            ctx.conn.execute(notes.insert, (ctx.id, str(n)))
        if n % 2:
            with ctx.conn.transaction():
                ctx.conn.execute(notes.insert, (ctx.id, "never"))
                raise psycopg.Rollback

    tried = on_the_loop if is_async else in_a_thread
    async with build(tried, transaction_pool_size=1) as engine:
        for n in range(8):
            await (await engine.insert(tried.bind(n=n))).result(timeout=15)
    assert runs == list(range(8))
    assert await notes.all() == sorted(str(n) for n in range(8) for _ in range(3))


async def test_the_server_ends_a_transaction_that_idles_for_too_long(build: Build, notes: Notes) -> None:
    """R5: idle_in_transaction_session_timeout is the setting transaction_idle_timeout; that is the step's error."""
    runs: list[int] = []

    class Slow(Job, max_attempts=1, transactional=True):
        async def run(self, ctx: Context) -> None:
            runs.append(ctx.attempt)
            await notes.add(ctx, "never")
            pid = ctx.conn.info.backend_pid
            while await (await watcher.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,))).fetchone():
                await moment(0.01)  # it computes, and says nothing to the database

    engine = build(Slow, transaction_idle_timeout=0.05)
    assert engine.settings.url is not None
    async with await psycopg.AsyncConnection.connect(engine.settings.url, autocommit=True) as watcher, engine:
        error = await failure(await engine.insert(Slow()))
    assert error["type"] == "psycopg.errors.IdleInTransactionSessionTimeout"
    assert runs == [0]
    assert await notes.all() == []


@pytest.mark.parametrize("fails", [False, True], ids=["done", "raises"])
async def test_a_task_that_a_step_left_behind_can_not_use_its_connection(
    build: Build, notes: Notes, fails: bool
) -> None:
    """R5: by then it is another's: what the task writes would commit with that, or by itself."""
    go, over = asyncio.Event(), asyncio.Event()
    left: list[asyncio.Task[None]] = []

    async def late(conn: Any, id_: int) -> None:
        await go.wait()
        await conn.execute(notes.insert, (id_, "late"))

    @job(transactional=True, max_attempts=1)
    async def leaves(ctx: Context) -> None:
        left.append(asyncio.create_task(late(ctx.conn, ctx.id)))
        await notes.add(ctx, "in time")
        if fails:
            raise ValueError("no")

    @job(transactional=True)
    async def follows(ctx: Context) -> None:
        await notes.add(ctx, "another's")
        go.set()
        await over.wait()

    async with build(leaves, follows, transaction_pool_size=1) as engine:
        handle = await engine.insert(leaves.bind())
        await eventually(lambda: _is(bool(left)))
        other = await engine.insert(follows.bind())
        await go.wait()
        with pytest.raises(TransactionError, match="behind its step"):
            await left[0]
        over.set()
        assert await other.result(timeout=LONG) is None
        if not fails:
            assert await handle.result(timeout=LONG) is None
    assert await notes.all() == (["another's"] if fails else ["another's", "in time"])


async def _is(truth: bool) -> bool:
    return truth
