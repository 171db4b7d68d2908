"""R4, R5: a transactional step that has lost its claim, its time, its connection or a race leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from engine_support import LONG, Build, Seen, Sql, ended, eventually, failure
from transactional_support import Notes, idle_backends, stepping

from gen_durable import Backoff, Context, Done, Engine, Job, Machine, Next, job, step
from gen_durable._runtime.transactor import RERUNS
from gen_durable.events import StaleEvent

# As a reaper does it to a worker that it believes dead.
RECLAIM = (
    "UPDATE {s}.instances SET status = 0, worker = NULL, rev = rev + 1, attempt = attempt + 1, crashes = crashes + 1 "
    "WHERE status = 2"
)


def quick(engine: Engine) -> Job:
    """A transactional job: the pool has room."""
    return next(spec.cls for spec in engine.settings.machines if spec.name == "after")()  # type: ignore[return-value]


class After(Job, name="after", transactional=True):
    async def run(self, ctx: Context) -> int:
        row = await (await ctx.conn.execute("SELECT 1")).fetchone()
        return int(row[0])


@pytest.fixture
def build(build: Build) -> Build:
    """The same, with a job more."""
    return lambda *machines, **settings: build(*machines, After, **{"transaction_pool_size": 2, **settings})


class Gated:
    """Steps that stop between their SQL and their end, until the test lets them go on."""

    def __init__(self) -> None:
        self.inside: asyncio.Queue[int] = asyncio.Queue()
        self.go: dict[int, asyncio.Event] = {}
        self.thread_go = threading.Event()
        self.loop = asyncio.get_running_loop()

    async def wait(self, ctx: Context) -> None:
        self.go[ctx.attempt] = asyncio.Event()
        self.inside.put_nowait(ctx.attempt)
        await self.go[ctx.attempt].wait()

    def block(self, ctx: Context) -> None:
        self.loop.call_soon_threadsafe(self.inside.put_nowait, ctx.attempt)
        assert self.thread_go.wait(4 * LONG)

    async def reached(self) -> int:
        return await asyncio.wait_for(self.inside.get(), LONG)


@pytest.fixture
async def gated() -> Gated:
    """Made inside the loop of the test."""
    return Gated()


@pytest.mark.parametrize("kind", ["end", "next", "key"])
async def test_a_lost_claim_rolls_back_what_the_step_wrote(
    build: Build, notes: Notes, sql: Sql, gated: Gated, kind: str
) -> None:
    """R4, R5: a reaper takes the row between the step's SQL and its commit: the old run is stale, and its SQL goes;
    only the new run's stays. By each of the statements that commit."""

    class Slow(Machine):
        @step(transactional=True)
        async def first(self, ctx: Context) -> Next | Done:
            await notes.add(ctx, f"attempt {ctx.attempt}")
            await gated.wait(ctx)
            return Next(self.last) if kind == "next" else Done(ctx.attempt)

        @step
        async def last(self, ctx: Context) -> Done:
            return Done(1)

    engine = build(Slow)
    stale = Seen(engine, "stale")
    async with engine:
        handle = await engine.insert(Slow(), key="k" if kind == "key" else None)
        assert await gated.reached() == 0
        await sql(RECLAIM)
        await sql("SELECT pg_notify('{s}_wake', 'q:default')")
        assert await gated.reached() == 1
        gated.go[0].set()
        await stale.until(len)
        assert await notes.all() == []
        gated.go[1].set()
        assert await handle.result(timeout=LONG) == 1
        assert len(await idle_backends(sql, engine)) == 2
    assert [(event.id, event.step) for event in stale.all] == [(handle.id, "first")]
    assert isinstance(stale.all[0], StaleEvent)
    assert await notes.all() == ["attempt 1"]


async def test_a_reaper_in_the_middle_of_the_commit_decides(
    build: Build, notes: Notes, sql: Sql, gated: Gated, database_url: str, migrated: str
) -> None:
    """R4, R5: the reclaim holds the row's lock when the step's commit comes: that waits for it (seen in
    pg_stat_activity), then finds the claim lost, and all of its transaction goes."""

    @job(transactional=True)
    async def slow(ctx: Context) -> int:
        await notes.add(ctx, f"attempt {ctx.attempt}")
        if ctx.attempt == 0:
            await gated.wait(ctx)
        return ctx.attempt

    engine = build(slow, poll_interval=0.1)
    stale = Seen(engine, "stale")
    async with engine, await psycopg.AsyncConnection.connect(database_url) as reaper:
        handle = await engine.insert(slow.bind())
        await gated.reached()
        await reaper.execute(RECLAIM.replace("{s}", migrated).encode())
        gated.go[0].set()
        waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
        await eventually(lambda: sql(waiting, stepping(engine)))
        assert await notes.all() == []
        await reaper.commit()
        await stale.until(len)
        assert await handle.result(timeout=LONG) == 1
    assert await notes.all() == ["attempt 1"]


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
async def test_a_cancel_rolls_back(build: Build, notes: Notes, sql: Sql, gated: Gated, is_async: bool) -> None:
    """R5: the instance is cancelled while its step has written: nothing of it stays, and its session ends at once,
    also where the step is a thread that nobody can stop."""

    @job(transactional=True)
    async def on_the_loop(ctx: Context) -> None:
        await notes.add(ctx, "never")
        await gated.wait(ctx)

    @job(transactional=True)
    def in_a_thread(ctx: Context) -> None:
        ctx.conn.execute(notes.insert, (ctx.id, "never"))
        gated.block(ctx)

    slow = on_the_loop if is_async else in_a_thread
    async with build(slow) as engine:
        handle = await engine.insert(slow.bind())
        await gated.reached()
        await engine.cancel(handle.id)
        assert (await ended(handle)).status == "cancelled"
        assert await idle_backends(sql, engine) == [], "it is closed"
        gated.thread_go.set()
        assert await (await engine.insert(quick(engine))).result(timeout=LONG) == 1
    assert await notes.all() == []


@pytest.mark.parametrize("how", ["waits", "asks", "thread"])
async def test_a_timeout_rolls_back(build: Build, notes: Notes, sql: Sql, gated: Gated, how: str) -> None:
    """R5: the step outlives its timeout, in its own code, in a statement, or in a thread: it is a TimeoutError, and
    its transaction is over before the retry."""
    seen: list[Any] = []

    class Slow(Machine):
        if how == "thread":

            @step(transactional=True, timeout=0.2)
            def only(self, ctx: Context) -> Done:
                ctx.conn.execute(notes.insert, (ctx.id, "never"))
                gated.block(ctx)
                return Done()
        else:

            @step(transactional=True, timeout=0.2)
            async def only(self, ctx: Context) -> Done:  # type: ignore[misc]
                await notes.add(ctx, "never")
                await (gated.wait(ctx) if how == "waits" else ctx.conn.execute("SELECT pg_sleep(60)"))
                return Done()

        async def on_error(self, error: Exception, ctx: Context) -> Done:
            seen.append(type(error))
            return Done("handled")

    async with build(Slow) as engine:
        assert await (await engine.insert(Slow())).result(timeout=LONG) == "handled"
        await idle_backends(sql, engine)
        gated.thread_go.set()
        for _ in range(3):
            assert await (await engine.insert(quick(engine))).result(timeout=LONG) == 1
    assert seen == [TimeoutError]
    assert await notes.all() == []


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
async def test_a_drain_that_is_over_rolls_back(
    build: Build, notes: Notes, sql: Sql, gated: Gated, is_async: bool
) -> None:
    """R5, R26: what does not end within drain_timeout is handed back, and what it wrote is gone."""

    @job(transactional=True)
    async def on_the_loop(ctx: Context) -> None:
        await notes.add(ctx, "never")
        await gated.wait(ctx)

    @job(transactional=True)
    def in_a_thread(ctx: Context) -> None:
        ctx.conn.execute(notes.insert, (ctx.id, "never"))
        gated.block(ctx)

    slow = on_the_loop if is_async else in_a_thread
    engine = build(slow, drain_timeout=0.1)
    async with engine:
        handle = await engine.insert(slow.bind())
        await gated.reached()
    assert await sql("SELECT status, attempt FROM {s}.instances WHERE id = %s", handle.id) == [(0, 0)]
    assert await idle_backends(sql, engine) == []
    assert await notes.all() == []
    gated.thread_go.set()


async def test_a_commit_under_way_is_ended_before_the_drain_is(build: Build, notes: Notes, gated: Gated) -> None:
    """R5, R26: the step has ended when the drain begins: its outcome counts."""

    @job(transactional=True)
    async def slow(ctx: Context) -> int:
        await notes.add(ctx, "kept")
        await gated.wait(ctx)
        return 5

    async with build(slow) as engine:
        handle = await engine.insert(slow.bind())
        await gated.reached()
        gated.go[0].set()
    async with engine.client():
        assert await handle.result(timeout=LONG) == 5
    assert await notes.all() == ["kept"]


# Races ----------------------------------------------------------------------------------------------


async def test_a_serialization_failure_runs_the_step_again(build: Build, notes: Notes, sql: Sql, gated: Gated) -> None:
    """R5: two serializable steps read what the other writes: one is refused by the server and runs again, without
    spending an attempt; the count that each stored is its own."""
    runs: list[int] = []
    both = asyncio.Barrier(2)

    @job(transactional=True)
    async def count(ctx: Context) -> int:
        runs.append(ctx.attempt)
        await ctx.conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        (n,) = await (await ctx.conn.execute(f"SELECT count(*) FROM {notes.table}")).fetchone()
        if len(runs) <= 2:
            await both.wait()
        await notes.add(ctx, str(n))
        return int(n)

    async with build(count) as engine:
        handles = [await engine.insert(count.bind()) for _ in range(2)]
        assert sorted([await handle.result(timeout=LONG) for handle in handles]) == [0, 1]
        assert [(await handle.get()).attempt for handle in handles] == [0, 0]
    # (Once more, where the first is still committing when the second runs again.)
    assert set(runs) == {0}
    assert 3 <= len(runs) <= 2 + RERUNS
    assert await notes.all() == ["0", "1"]


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
async def test_a_deadlock_runs_the_step_again(build: Build, sql: Sql, notes: Notes, is_async: bool) -> None:
    """R5: two steps lock two rows in opposite orders: the victim runs again, and both are done."""
    await sql(f"INSERT INTO {notes.table} VALUES (1, 'a'), (2, 'b')")
    update = f"UPDATE {notes.table} SET what = what || '+' WHERE id = %s"
    runs: list[int] = []
    barrier, blocking = asyncio.Barrier(2), threading.Barrier(2)

    @job(transactional=True)
    async def on_the_loop(ctx: Context, first: int) -> None:
        runs.append(ctx.attempt)
        await ctx.conn.execute(update, (first,))
        if len(runs) <= 2:
            await barrier.wait()
        await ctx.conn.execute(update, (3 - first,))

    @job(transactional=True)
    def in_a_thread(ctx: Context, first: int) -> None:
        runs.append(ctx.attempt)
        ctx.conn.execute(update, (first,))
        if len(runs) <= 2:
            blocking.wait()
        ctx.conn.execute(update, (3 - first,))

    cross = on_the_loop if is_async else in_a_thread
    async with build(cross) as engine:
        handles = [await engine.insert(cross.bind(first=n)) for n in (1, 2)]
        for handle in handles:
            await handle.result(timeout=LONG)
    assert runs == [0, 0, 0]
    assert await notes.all() == ["a++", "b++"]


async def test_a_conflict_without_end_is_an_error_of_the_step(build: Build, notes: Notes) -> None:
    """R5, R8: after some runs it goes the way of an exception."""
    runs: list[int] = []

    class Never(Job, transactional=True, retry=Backoff(max_attempts=2, initial=0.0, jitter=False)):
        async def run(self, ctx: Context) -> None:
            runs.append(ctx.attempt)
            await notes.add(ctx, "never")
            await ctx.conn.execute("DO $$ BEGIN RAISE EXCEPTION SQLSTATE '40001'; END $$")

    async with build(Never) as engine:
        error = await failure(await engine.insert(Never()))
    assert error["type"] == "psycopg.errors.SerializationFailure"
    assert runs == [0] * 6 + [1] * 6
    assert await notes.all() == []


# The connection -------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["between", "before the commit", "at rest"])
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
async def test_a_session_that_the_server_ends_costs_a_run_and_no_attempt(
    build: Build, notes: Notes, sql: Sql, connect: Callable[[], Any], when: str, is_async: bool
) -> None:
    """R5, R27: nothing of it is committed, and the step runs again on another connection."""
    runs: list[int] = []
    admin: Any = await connect()
    kill = "SELECT pg_terminate_backend(%s, 5000)"
    assert isinstance(admin, psycopg.AsyncConnection)
    url = admin.info.dsn
    password = admin.info.password

    def kill_sync(pid: int) -> None:
        with psycopg.connect(url, password=password, autocommit=True) as own:
            own.execute(kill, (pid,))

    @job(transactional=True)
    async def on_the_loop(ctx: Context) -> int:
        runs.append(ctx.attempt)
        await notes.add(ctx, str(len(runs)))
        if len(runs) == 1 and when != "at rest":
            await asyncio.to_thread(kill_sync, ctx.conn.info.backend_pid)
            if when == "between":
                await notes.add(ctx, "never")
        return int(ctx.conn.info.backend_pid)

    @job(transactional=True)
    def in_a_thread(ctx: Context) -> int:
        runs.append(ctx.attempt)
        ctx.conn.execute(notes.insert, (ctx.id, str(len(runs))))
        if len(runs) == 1 and when != "at rest":
            kill_sync(ctx.conn.info.backend_pid)
            if when == "between":
                ctx.conn.execute(notes.insert, (ctx.id, "never"))
        return int(ctx.conn.info.backend_pid)

    cut = on_the_loop if is_async else in_a_thread
    async with build(cut) as engine:
        pid = await (await engine.insert(cut.bind())).result(timeout=LONG)
        if when == "at rest":
            await asyncio.to_thread(kill_sync, pid)
            assert await (await engine.insert(cut.bind())).result(timeout=LONG) != pid
    assert runs == [0, 0]
    assert await notes.all() == (["1", "2"] if when == "at rest" else ["2"])


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
async def test_a_commit_that_comes_late_decides_what_the_next_step_gets(
    build: Build, notes: Notes, sql: Sql, database_url: str, migrated: str, is_async: bool
) -> None:
    """R3, R5: the first run's commit waits for the row's lock (seen in pg_stat_activity) until its connection is given
    up, and takes effect when the second run is on its way: the next step gets the state that is committed, the first
    run's, with its SQL; the second run's goes with its SQL."""
    runs: list[int] = []

    class Walk(Machine):
        n: int = 0

        if is_async:

            @step(transactional=True)
            async def first(self, ctx: Context) -> Next:
                runs.append(ctx.attempt)
                self.n = len(runs)
                await notes.add(ctx, f"run {self.n}")
                return Next(self.last)
        else:

            @step(transactional=True)
            def first(self, ctx: Context) -> Next:  # type: ignore[misc]
                runs.append(ctx.attempt)
                self.n = len(runs)
                ctx.conn.execute(notes.insert, (ctx.id, f"run {self.n}"))
                return Next(self.last)

        @step
        async def last(self, ctx: Context) -> Done:
            return Done(f"run {self.n}")

    async def ran_twice() -> bool:
        return len(runs) > 1

    engine = build(Walk, statement_timeout=0.5)
    waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
    async with engine, await psycopg.AsyncConnection.connect(database_url) as locker:
        async with await psycopg.AsyncConnection.connect(database_url) as gate:
            await gate.execute(f"LOCK TABLE {notes.table} IN EXCLUSIVE MODE".encode())
            handle = await engine.insert(Walk())
            await eventually(lambda: sql(waiting, stepping(engine)))
            await locker.execute(f"SELECT 1 FROM {migrated}.instances FOR UPDATE".encode())
        await eventually(ran_twice)
        await locker.commit()
        result = await handle.result(timeout=LONG)
    assert runs[:2] == [0, 0]
    # Whichever it is: a server that is slow to read may find the first run's connection reset before its COMMIT.
    assert await notes.all() == [result]


async def test_a_commit_that_comes_late_is_no_error_of_the_run_that_meets_its_rows(
    build: Build, notes: Notes, sql: Sql, database_url: str, migrated: str
) -> None:
    """R3, R5: the second run's SQL waits for the first's row, and fails when that is committed after all: the step is
    done, so on_error hears nothing, and the instance goes on at once."""
    runs: list[int] = []
    failed: list[Exception] = []

    class Walk(Machine):
        @step(transactional=True)
        async def first(self, ctx: Context) -> Next:
            runs.append(ctx.attempt)
            await notes.add(ctx, f"run {len(runs)}")
            return Next(self.last)

        @step
        async def last(self, ctx: Context) -> Done:
            return Done("last")

        async def on_error(self, error: Exception, ctx: Context) -> Done:
            failed.append(error)
            return Done("handled")

    await sql(f"ALTER TABLE {notes.table} ADD PRIMARY KEY (id)")
    engine = build(Walk, statement_timeout=0.5, lease=60.0)
    waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"

    async def meets_it() -> bool:
        return len(runs) > 1 and len(await sql(waiting, stepping(engine))) > 1

    async with engine, await psycopg.AsyncConnection.connect(database_url) as locker:
        async with await psycopg.AsyncConnection.connect(database_url) as gate:
            await gate.execute(f"LOCK TABLE {notes.table} IN EXCLUSIVE MODE".encode())
            handle = await engine.insert(Walk())
            await eventually(lambda: sql(waiting, stepping(engine)))
            await locker.execute(f"SELECT 1 FROM {migrated}.instances FOR UPDATE".encode())
        await eventually(meets_it)
        await locker.commit()
        assert await handle.result(timeout=LONG) == "last"
    assert failed == []
    assert len(await notes.all()) == 1
