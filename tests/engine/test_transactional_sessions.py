"""R5 in SQLAlchemy's sessions: the session's own transaction holds the step's SQL and its outcome."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import psycopg
import pytest
from engine_support import LONG, Build, Seen, Sql, ended, eventually, failure
from psycopg import conninfo
from sqlalchemy import BigInteger, Text, event, text
from sqlalchemy.engine import URL, create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import NullPool
from transactional_support import Notes

from gen_durable import Await, Backoff, Context, Done, Job, Machine, Next, Spawn, job, step
from gen_durable.errors import ConfigurationError, TransactionError

DRIVERS = ["psycopg", "asyncpg"]


def url_of(url: str, driver: str, **others: Any) -> URL:
    given = conninfo.conninfo_to_dict(url) | others
    return URL.create(
        f"postgresql+{driver}", str(given["user"]), str(given["password"] or "") or None, str(given["host"]),
        int(str(given["port"])), str(given["dbname"]),
    )  # fmt: skip


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    what: Mapped[str] = mapped_column(Text, primary_key=True)
    schemas: ClassVar[dict[str, str]] = {}


def in_schema(schema: str) -> dict[str, Any]:
    return {"execution_options": {"schema_translate_map": {None: schema}}}


@pytest.fixture(params=DRIVERS)
async def maker(request: pytest.FixtureRequest, database_url: str, migrated: str) -> AsyncIterator[Any]:
    engine: AsyncEngine = create_async_engine(url_of(database_url, request.param), **in_schema(migrated))
    yield async_sessionmaker(engine)
    await engine.dispose()


@pytest.fixture
def blocking_maker(database_url: str, migrated: str) -> Any:
    engine = create_engine(url_of(database_url, "psycopg"), **in_schema(migrated))
    yield sessionmaker(engine)
    engine.dispose()


class Leaf(Machine, name="leaf"):
    @step
    async def only(self, ctx: Context) -> Done:
        return Done()


class Walk(Machine, name="walk", transactional=True):
    """Writes through the session's unit of work, in a step of each kind of outcome."""

    n: int = 0
    text: str = "quotes ' \" and 100 % of $1 \\ "

    @step
    async def first(self, ctx: Context) -> Next:
        ctx.session.add(Note(id=ctx.id, what="first"))
        self.n += 1
        return Next(self.parks)

    @step
    async def parks(self, ctx: Context) -> Await:
        ctx.session.add(Note(id=ctx.id, what="parks"))
        return Await("go", then=self.spawns, timeout=0.01)

    @step
    async def spawns(self, ctx: Context) -> Spawn:
        ctx.session.add(Note(id=ctx.id, what="spawns"))
        return Spawn([Leaf(), Leaf()], then=self.last)

    @step
    async def last(self, ctx: Context) -> Done:
        ctx.session.add(Note(id=ctx.id, what="last"))
        return Done({"text": self.text, "children": len(ctx.children), "n": self.n})


async def test_a_session_s_writes_commit_with_every_outcome(build: Build, notes: Notes, sql: Sql, maker: Any) -> None:
    """R5: flushed before the outcome, committed with it; with a key, so that each driver gets commit.sql too."""
    async with build(Walk, Leaf, sessionmaker=maker, concurrency_limits={"k": 1}) as engine:
        handle = await engine.insert(Walk(), key="k", concurrency_key="k")
        result = await handle.result(timeout=LONG)
        assert await (await engine.insert(Walk())).result(timeout=LONG) == result
    assert result == {"text": "quotes ' \" and 100 % of $1 \\ ", "children": 2, "n": 1}
    assert await notes.all() == sorted(["first", "parks", "spawns", "last"] * 2)


async def test_a_session_whose_connection_streams_its_rows(build: Build, notes: Notes, maker: Any) -> None:
    """R5: that is for the step's own reading; the outcome is no statement for a cursor of the server's."""

    @job(transactional=True)
    async def streams(ctx: Context) -> int:
        ctx.session.add(Note(id=ctx.id, what="kept"))
        await ctx.session.flush()
        await (await ctx.session.connection()).execution_options(stream_results=True)
        return 1

    async with build(streams, sessionmaker=maker) as engine:
        assert await (await engine.insert(streams.bind())).result(timeout=LONG) == 1
    assert await notes.all() == ["kept"]


async def test_an_error_rolls_a_session_back(build: Build, notes: Notes, sql: Sql, maker: Any) -> None:
    """R5: the step's own error, and one of the flush that the engine makes."""

    class Flaky(Job, transactional=True, retry=Backoff(max_attempts=3, initial=0.0, jitter=False)):
        async def run(self, ctx: Context) -> int:
            ctx.session.add(Note(id=ctx.id, what=f"attempt {ctx.attempt}"))
            if ctx.attempt == 0:
                await ctx.session.flush()
                raise ValueError("no")
            if ctx.attempt == 1:
                ctx.session.add(Note(id=ctx.id, what="bad"))
            return ctx.attempt

    seen: list[Any] = []
    engine = build(Flaky, sessionmaker=maker)
    engine.on("step", lambda event: seen.append(type(event.error)))
    await sql("ALTER TABLE {s}.notes ADD CHECK (what <> 'bad')")
    async with engine:
        assert await (await engine.insert(Flaky())).result(timeout=LONG) == 2
    assert seen == [ValueError, IntegrityError, type(None)]
    assert await notes.all() == ["attempt 2"]


@pytest.mark.parametrize("how", ["lost", "commit", "aborted", "cancelled"])
async def test_a_session_that_can_t_commit_leaves_nothing(
    build: Build, notes: Notes, sql: Sql, maker: Any, how: str
) -> None:
    """R4, R5: the claim is lost; the step committed by itself; it swallowed an error; its instance was cancelled."""
    inside: asyncio.Queue[Context] = asyncio.Queue()
    go = asyncio.Event()

    class Slow(Job, transactional=True, max_attempts=1):
        async def run(self, ctx: Context) -> int:
            ctx.session.add(Note(id=ctx.id, what="before"))
            await ctx.session.flush()
            if how == "commit":
                await ctx.session.commit()
                ctx.session.add(Note(id=ctx.id, what="after"))
            elif how == "aborted":
                with contextlib.suppress(Exception):
                    await (await ctx.session.connection()).execute(text("SELECT 1 / 0"))
            elif ctx.attempt == 0:
                inside.put_nowait(ctx)
                await go.wait()
            return ctx.attempt

    engine = build(Slow, sessionmaker=maker, poll_interval=0.1)
    stale = Seen(engine, "stale")
    async with engine:
        handle = await engine.insert(Slow())
        if how in ("lost", "cancelled"):
            await asyncio.wait_for(inside.get(), LONG)
        if how == "lost":
            await sql("UPDATE {s}.instances SET status = 0, worker = NULL, rev = rev + 1, attempt = attempt + 1")
            go.set()
            await stale.until(len)
            assert await handle.result(timeout=LONG) == 1
        elif how == "cancelled":
            await engine.cancel(handle.id)
            assert (await ended(handle)).status == "cancelled"
        else:
            error = await failure(handle)
            assert ("TransactionEnded" if how == "commit" else "TransactionError") in error["type"]
    assert await notes.all() == (["before"] if how in ("lost", "commit") else [])


@pytest.mark.parametrize("more", [False, True], ids=["at once", "in the next transaction"])
async def test_a_step_that_fails_behind_a_session_s_commit_is_not_run_again(
    build: Build, notes: Notes, maker: Any, more: bool
) -> None:
    """R5: what it has committed would be applied twice. One that only rolls back and raises is retried, as ever."""

    class Commits(Job, transactional=True, retry=Backoff(max_attempts=3, initial=0.0, jitter=False)):
        async def run(self, ctx: Context) -> None:
            ctx.session.add(Note(id=ctx.id, what=f"attempt {ctx.attempt}"))
            if ctx.attempt == 0:
                await ctx.session.rollback()
            else:
                await ctx.session.commit()
                if more:
                    await ctx.session.execute(text("SELECT 1"))
            raise ValueError("no")

    async with build(Commits, sessionmaker=maker) as engine:
        handle = await engine.insert(Commits())
        error = await failure(handle)
        assert (await handle.get()).attempt == 1
    assert "TransactionEnded" in error["type"]
    assert await notes.all() == ["attempt 1"]


@pytest.mark.parametrize("whose", ["session", "class"])
async def test_a_hook_that_fails_behind_the_commit_changes_nothing(
    build: Build, notes: Notes, maker: Any, caplog: pytest.LogCaptureFixture, whose: str
) -> None:
    """R1, R5: the outcome is there, so the instance goes on from it, at once; it is no error of the step."""
    failed: list[str] = []

    def hook(_session: Any) -> None:
        raise ValueError("behind the commit")

    class Walk(Machine):
        @step(transactional=True)
        async def first(self, ctx: Context) -> Next:
            ctx.session.add(Note(id=ctx.id, what="kept"))
            if whose == "session":
                event.listen(ctx.session.sync_session, "after_commit", hook)
            return Next(self.last)

        @step
        async def last(self, ctx: Context) -> Done:
            return Done(1)

        async def on_error(self, error: Exception, ctx: Context) -> Done:
            failed.append(str(error))
            return Done(2)

    class Hooked(Session):
        pass

    if whose == "class":
        event.listen(Hooked, "after_commit", hook)
        maker.configure(sync_session_class=Hooked)
    async with build(Walk, sessionmaker=maker, lease=60.0) as engine:
        assert await (await engine.insert(Walk())).result(timeout=LONG) == 1
    assert failed == []
    assert await notes.all() == ["kept"]
    assert "its transaction is committed, and then: behind the commit" in caplog.text


async def test_a_session_shows_psycopg_s_connection_and_no_other(build: Build, notes: Notes, maker: Any) -> None:
    """Section 9: ctx.conn is the driver's connection where that is psycopg's, in the same transaction."""

    @job(transactional=True)
    async def both(ctx: Context) -> str:
        ctx.session.add(Note(id=ctx.id, what="session"))
        try:
            await notes.add(ctx, "conn")
        except TransactionError as error:
            return str(error)
        return type(ctx.conn).__name__

    async with build(both, sessionmaker=maker) as engine:
        found = await (await engine.insert(both.bind())).result(timeout=LONG)
    if found == "AsyncConnection":
        assert await notes.all() == ["conn", "session"]
    else:
        assert found == "ctx.conn: the session's driver is asyncpg; use ctx.session"
        assert await notes.all() == ["session"]


async def test_plain_functions_get_a_blocking_session(build: Build, notes: Notes, blocking_maker: Any) -> None:
    """R5: with ``sessionmaker``; an async step beside it has ``ctx.conn`` alone."""

    @job(transactional=True, retry=Backoff(max_attempts=2, initial=0.0, jitter=False))
    def in_a_thread(ctx: Context) -> int:
        ctx.session.add(Note(id=ctx.id, what=f"session {ctx.attempt}"))
        ctx.conn.execute(notes.insert, (ctx.id, f"conn {ctx.attempt}"))
        if ctx.attempt == 0:
            ctx.session.flush()
            raise ValueError("no")
        return ctx.attempt

    @job(transactional=True)
    async def on_the_loop(ctx: Context) -> str:
        await notes.add(ctx, "async")
        try:
            return str(ctx.session)
        except TransactionError as error:
            return str(error)

    async with build(in_a_thread, on_the_loop, sessionmaker=blocking_maker) as engine:
        assert await (await engine.insert(in_a_thread.bind())).result(timeout=LONG) == 1
        found = await (await engine.insert(on_the_loop.bind())).result(timeout=LONG)
    assert (
        found == "ctx.session: the engine has no sessionmaker= for async steps: give it SQLAlchemy's async_sessionmaker"
    )
    assert await notes.all() == ["async", "conn 1", "session 1"]


@pytest.mark.parametrize("when", ["between", "before the commit"])
async def test_a_session_that_the_server_ends_costs_a_run(
    build: Build, notes: Notes, maker: Any, connect: Callable[[], Any], when: str
) -> None:
    """R5, R27: its connection is cut before the commit: nothing of it stays, and no attempt is spent."""
    runs: list[int] = []
    admin: psycopg.AsyncConnection[Any] = await connect()

    @job(transactional=True)
    async def cut(ctx: Context) -> int:
        runs.append(ctx.attempt)
        ctx.session.add(Note(id=ctx.id, what=str(len(runs))))
        (pid,) = (await ctx.session.execute(text("SELECT pg_backend_pid()"))).one()
        if len(runs) == 1:
            await admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            if when == "between":
                await ctx.session.execute(text("SELECT 1"))
        return len(runs)

    async with build(cut, sessionmaker=maker) as engine:
        assert await (await engine.insert(cut.bind())).result(timeout=LONG) == 2
    assert runs == [0, 0]
    assert await notes.all() == ["2"]


async def test_a_sessionmaker_that_fails_is_an_error_of_the_step(build: Build, notes: Notes, maker: Any) -> None:
    """R5, R8: whatever it raises, the worker goes on."""
    seen: list[Any] = []
    working = maker.kw["bind"]
    engine = build(Walk, sessionmaker=maker)
    engine.on("step", lambda event: seen.append(type(event.error)))
    async with engine:
        maker.kw["bind"] = None
        assert (await failure(await engine.insert(Walk())))["type"].startswith("sqlalchemy.exc.")
        maker.kw["bind"] = working
    assert len(seen) == 1


@pytest.mark.parametrize("why", ["refused", "exhausted"])
@pytest.mark.parametrize("driver", [*DRIVERS, "def"])
async def test_a_step_waits_for_a_connection_that_is_not_to_be_had(
    build: Build,
    notes: Notes,
    database_url: str,
    migrated: str,
    caplog: pytest.LogCaptureFixture,
    driver: str,
    why: str,
) -> None:
    """R5, R27: the server is away when a step's transaction is to begin, or all connections of SQLAlchemy's pool are in
    use for longer than it waits: that is no error of the step."""
    away = False

    class Once(Job, transactional=True, max_attempts=1):
        if driver == "def":

            def run(self, ctx: Context) -> None:
                ctx.session.add(Note(id=ctx.id, what="kept"))
        else:

            async def run(self, ctx: Context) -> None:  # type: ignore[misc]
                ctx.session.add(Note(id=ctx.id, what="kept"))

    def connecting(_dialect: Any, _record: Any, _given: Any, parameters: dict[str, Any]) -> None:
        if away:
            parameters["port"] = 1

    async def told() -> bool:
        return "a connection for step 'run'" in caplog.text

    maker: Any
    pool: Any = (
        {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.05} if why == "exhausted" else {"poolclass": NullPool}
    )
    options = pool | in_schema(migrated)
    async with contextlib.AsyncExitStack() as stack:
        if driver == "def":
            blocking = create_engine(url_of(database_url, "psycopg"), **options)
            maker = sessionmaker(blocking)
            stack.callback(blocking.dispose)
        else:
            database = create_async_engine(url_of(database_url, driver), **options)
            blocking, maker = database.sync_engine, async_sessionmaker(database)
            stack.push_async_callback(database.dispose)
        event.listen(blocking, "do_connect", connecting)
        engine = await stack.enter_async_context(build(Once, sessionmaker=maker))
        async with contextlib.AsyncExitStack() as trouble:
            if why == "exhausted" and driver == "def":
                trouble.enter_context(blocking.connect())
            elif why == "exhausted":
                await trouble.enter_async_context(database.connect())
            else:
                away = True
            handle = await engine.insert(Once())
            await eventually(told)
        away = False
        await handle.result(timeout=LONG)
    assert await notes.all() == ["kept"]


# Given wrongly --------------------------------------------------------------------------------------


async def test_a_sessionmaker_of_another_database_is_refused_at_the_start(
    build: Build, database_url: str, connect: Callable[[], Any]
) -> None:
    """Section 14: what can't commit together is told before any step runs; so is a database that can't be asked."""
    admin: psycopg.AsyncConnection[Any] = await connect()
    name = f"other_{admin.info.backend_pid}"
    await admin.execute(f"CREATE DATABASE {name}".encode())
    other = create_async_engine(url_of(database_url, "psycopg", dbname=name))
    nowhere = create_async_engine(url_of(database_url, "asyncpg", port=1))
    try:
        for engine, message in ((other, "leads to another database"), (nowhere, "its database can't be asked")):
            with pytest.raises(ConfigurationError, match=message):
                async with build(Walk, sessionmaker=async_sessionmaker(engine)):
                    pass
        async with build(Leaf, sessionmaker=async_sessionmaker(other)):
            pass  # no step needs it
    finally:
        await other.dispose()
        await nowhere.dispose()
        await admin.execute(f"DROP DATABASE {name}".encode())


def test_what_is_no_sessionmaker_is_refused(build: Build, database_url: str) -> None:
    """Section 14: with the type that came, and the mend."""
    engine = create_engine(url_of(database_url, "psycopg"))
    for wrong in (engine, sessionmaker(engine)(), 5):
        with pytest.raises(ConfigurationError, match=rf"sessionmaker={type(wrong).__name__}: give SQLAlchemy's async_"):
            build(Walk, sessionmaker=wrong)
    engine.dispose()


async def test_the_look_at_its_database_is_no_turn_more(build: Build, maker: Any) -> None:
    """Section 9: no more sessions at once than the pool is large, from the start."""
    inside, go = asyncio.Queue[int](), asyncio.Event()
    most = [0, 0]

    @job(transactional=True)
    async def narrow(ctx: Context) -> None:
        most[0] += 1
        most[1] = max(most)
        inside.put_nowait(ctx.id)
        await go.wait()
        most[0] -= 1

    async with build(narrow, sessionmaker=maker, transaction_pool_size=1, queues={"default": 4}) as engine:
        handles = [await engine.insert(narrow.bind()) for _ in range(4)]
        await asyncio.wait_for(inside.get(), LONG)
        turns = engine._worker._transactions._turns[True]  # type: ignore[union-attr]

        async def others_wait() -> bool:
            return len(turns._waiting) == 3 or most[1] > 1

        await eventually(others_wait)
        go.set()
        for handle in handles:
            await handle.result(timeout=LONG)
    assert most == [0, 1]


async def test_a_driver_that_binds_on_the_client(build: Build, database_url: str) -> None:
    """R5: with literals the server folds constants as it plans: that a claim is lost must not be one."""

    async def connected() -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(database_url, cursor_factory=psycopg.AsyncClientCursor)

    database = create_async_engine("postgresql+psycopg://", async_creator=connected)

    class Two(Machine):
        @step(transactional=True)
        async def first(self, ctx: Context) -> Next:
            return Next(self.second)

        @step(transactional=True)
        async def second(self, ctx: Context) -> Done:
            return Done(1)

    async with build(Two, sessionmaker=async_sessionmaker(database)) as engine:
        found = await ended(await engine.insert(Two()))
        assert (found.status, found.error) == ("done", None)
    await database.dispose()
