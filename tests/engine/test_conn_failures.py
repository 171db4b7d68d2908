"""Calls in the caller's transaction that go wrong: what they say, and in what state they leave it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import asyncpg
import psycopg
import psycopg_pool
import pytest
import sqlalchemy as sa
from conn_kinds import KINDS, Call, Caller, elsewhere, lend, sa_url
from engine_support import LONG, Build, Sql, eventually
from psycopg import conninfo
from sqlalchemy import orm

from gen_durable import BulkItem, Engine, Rate, job
from gen_durable.errors import (
    DatabaseError,
    DatabaseUnreachable,
    DuplicateInstance,
    EngineStateError,
    InvalidArgument,
    NoSuchInstance,
    NoSuchSchedule,
    SchemaMissing,
)

SOME = [
    "psycopg async", "psycopg", "psycopg2", "asyncpg", "sqlalchemy psycopg session", "sqlalchemy psycopg2 connection",
    "sqlalchemy psycopg async session", "sqlalchemy asyncpg async session", "django",
]  # fmt: skip


@job
async def plain(n: int) -> int:
    return n


@job(queue="limited", rate_limit="fast")
async def limited(n: int) -> int:
    return n


async def keys(sql: Sql) -> list[str]:
    return [key for (key,) in await sql("SELECT key FROM {s}.all_instances WHERE key LIKE 'k%' ORDER BY key")]


@pytest.fixture(params=SOME)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_call_that_fails_leaves_the_transaction_usable(
    kind: str, database_url: str, build: Build, sql: Sql
) -> None:
    """R16, R20: a duplicate, a missing target, a wrong argument; the rest of the transaction commits."""

    async def work(caller: Caller, call: Call) -> None:
        conn = caller.conn
        await caller.begin()
        await call("insert", plain.bind(n=1), key="k1", conn=conn)
        with pytest.raises(DuplicateInstance) as refused:
            await call("insert", plain.bind(n=1), key="taken", conn=conn)
        assert refused.value.existing_id == taken.id
        with pytest.raises(DuplicateInstance):  # its own
            await call("insert", plain.bind(n=1), key="k1", conn=conn)
        with pytest.raises(NoSuchInstance):
            await call("signal", "nobody", "go", conn=conn)
        with pytest.raises(NoSuchInstance):
            await call("cancel", "nobody", conn=conn)
        with pytest.raises(NoSuchSchedule):
            await call("resume_schedule", "nothing", conn=conn)
        with pytest.raises(DuplicateInstance) as again:
            await call("retry", failed.id, conn=conn)
        assert again.value.existing_id == holder.id
        with pytest.raises(InvalidArgument):
            await call("retry", taken.id, conn=conn)
        with pytest.raises(InvalidArgument):
            await call("insert_many", [plain.bind(n=1), BulkItem(plain.bind(n=1), key="")], conn=conn)
        existing = await call("insert", plain.bind(n=1), key="taken", on_conflict="existing", conn=conn)
        assert existing.id == taken.id
        await call("insert", plain.bind(n=2), key="k2", conn=conn)
        await caller.commit()

    async with build(plain, queues={}).client() as engine:
        taken = await engine.insert(plain.bind(n=0), key="taken")
        failed = await engine.insert(plain.bind(n=0), key="again")
        await engine.cancel(failed.id)
        holder = await engine.insert(plain.bind(n=0), key="again")
        await lend(kind, database_url, engine, work)
        assert await keys(sql) == ["k1", "k2"]


async def test_of_two_transactions_with_one_key_the_second_waits_and_is_told(
    database_url: str, build: Build, sql: Sql, connect: Callable[[], Any]
) -> None:
    """R16, R20: whether the first commits decides what the second hears; its transaction stays usable."""
    async with build(plain, queues={}).client() as engine, KINDS["psycopg async"](database_url) as one:
        for ends, word in (("commit", "k1"), ("rollback", "k2")):
            async with KINDS["asyncpg"](database_url) as two:
                await one.begin()
                first = await engine.insert(plain.bind(n=1), key=word, conn=one.conn)
                await two.begin()
                second = asyncio.create_task(engine.insert(plain.bind(n=2), key=word, conn=two.conn))
                pid = two.conn.get_server_pid()
                waits = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"

                async def is_waiting(pid: int = pid, waits: str = waits) -> bool:
                    return bool((await sql(waits, pid))[0][0])

                await eventually(is_waiting)
                await getattr(one, ends)()
                if ends == "commit":
                    with pytest.raises(DuplicateInstance) as refused:
                        await second
                    assert refused.value.existing_id == first.id
                else:
                    assert (await second).id != first.id
                await engine.insert(plain.bind(n=3), key=f"{word}+", conn=two.conn)
                await two.commit()
        assert await keys(sql) == ["k1", "k1+", "k2", "k2+"]


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_a_queue_that_is_younger_than_the_snapshot(
    kind: str, database_url: str, build: Build, sql: Sql, isolation: str
) -> None:
    """R20: the first use of a queue is committed apart; in a snapshot from before that the call says to try again, and
    writes nothing, also of its other rows."""
    loop = asyncio.get_running_loop()

    async def work(caller: Caller, call: Call) -> None:
        conn = caller.conn
        await caller.begin()
        await caller.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
        await call("insert", plain.bind(n=1), key="k1", conn=conn)
        await elsewhere(caller, loop, engine.insert(plain.bind(n=2), key="k0", queue="young"))
        with pytest.raises(DatabaseError, match="try again in a new transaction"):
            await call("insert", plain.bind(n=2), key="k2", queue="young", conn=conn)
        items = [BulkItem(plain.bind(n=2), key="k3"), BulkItem(plain.bind(n=2), key="k4", queue="young")]
        with pytest.raises(DatabaseError, match="try again in a new transaction"):
            await call("insert_many", items, conn=conn)
        await caller.commit()
        await caller.begin()
        await call("insert", plain.bind(n=2), key="k5", queue="young", conn=conn)
        await caller.commit()

    async with build(plain, queues={}).client() as engine:
        async with build(plain, queues={"default": 1, "young": 1}):  # the queue is known, its lane is not
            pass
        await sql("DELETE FROM {s}.lanes WHERE queue = 'young'")
        await engine.insert(plain.bind(n=0))
        await lend(kind, database_url, engine, work)
        assert await keys(sql) == ["k0", "k1", "k5"]


async def test_many_rows_are_one_transaction(kind: str, database_url: str, build: Build, sql: Sql) -> None:
    """R20, section 7: several round trips in the caller's transaction; ids go in the order given."""

    async def work(caller: Caller, call: Call) -> None:
        items = [BulkItem(plain.bind(n=n), key=f"m{n % 4000:05}") for n in range(4500)]
        await caller.begin()
        report = await call("insert_many", items, conn=caller.conn)
        assert [one.duplicate for one in report] == [False] * 4000 + [True] * 500
        ids = [one.id for one in report[:4000]]
        assert ids == sorted(ids)
        await caller.commit()

    async with build(plain, queues={}).client() as engine:
        await lend(kind, database_url, engine, work)
        assert await sql("SELECT count(*) FROM {s}.instances") == [(4000,)]


REFUSE = (
    "CREATE FUNCTION {s}.refuse() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN IF NEW.key = 'k2400' THEN RAISE EXCEPTION 'refused'; END IF; RETURN NEW; END $$",
    "CREATE TRIGGER refuse BEFORE INSERT ON {s}.instances FOR EACH ROW EXECUTE FUNCTION {s}.refuse()",
)
MANY = [BulkItem(plain.bind(n=n), key=f"k{n:04}") for n in range(2500)]


@pytest.mark.parametrize("kind", [k for k in KINDS if "autocommit" in k or k in ("asyncpg", "django")], indirect=True)
async def test_without_a_transaction_a_call_is_one_of_its_own(
    kind: str, database_url: str, build: Build, sql: Sql
) -> None:
    """R20: in autocommit mode all statements of a call commit together, or none does."""
    loop = asyncio.get_running_loop()

    async def work(caller: Caller, call: Call) -> None:
        await call("insert", plain.bind(n=1), key="k", conn=caller.conn)
        assert await elsewhere(caller, loop, keys(sql)) == ["k"]
        with pytest.raises(Exception, match="refused"):
            await call("insert_many", MANY, conn=caller.conn)
        assert await elsewhere(caller, loop, keys(sql)) == ["k"]
        await call("cancel", "k", cascade=True, conn=caller.conn)
        await call("retry", "k", conn=caller.conn)
        statuses = await elsewhere(caller, loop, sql("SELECT status FROM {s}.all_instances"))
        assert statuses == [(0,)]

    async with build(plain, queues={}).client() as engine:
        for text in REFUSE:
            await sql(text)
        await lend(kind, database_url, engine, work)


async def test_what_a_call_of_several_statements_did_is_undone_when_it_fails(
    kind: str, database_url: str, build: Build, sql: Sql
) -> None:
    """R20: by a savepoint, so that the caller's transaction can go on."""

    async def work(caller: Caller, call: Call) -> None:
        await caller.begin()
        await call("insert", plain.bind(n=1), key="k1", conn=caller.conn)
        with pytest.raises(Exception, match="refused"):
            await call("insert_many", MANY, conn=caller.conn)
        await call("insert", plain.bind(n=1), key="k2", conn=caller.conn)
        await caller.commit()

    async with build(plain, queues={}).client() as engine:
        for text in REFUSE:
            await sql(text)
        await lend(kind, database_url, engine, work)
        assert await keys(sql) == ["k1", "k2"]


async def test_in_a_pipeline(database_url: str, build: Build, sql: Sql) -> None:
    """R20: psycopg's pipeline mode, where answers come when they are asked for."""
    async with build(plain, queues={}).client() as engine:
        async with await psycopg.AsyncConnection.connect(database_url) as conn, conn.pipeline():
            await engine.insert(plain.bind(n=1), key="k1", conn=conn)
            with pytest.raises(DuplicateInstance):
                await engine.insert(plain.bind(n=1), key="k1", conn=conn)
            with pytest.raises(NoSuchInstance):
                await engine.cancel("nobody", conn=conn)
            await engine.cancel("k1", cascade=True, conn=conn)
            await engine.signal_or_insert(plain.bind(n=2), key="k2", name="go", conn=conn)
        assert await keys(sql) == ["k1", "k2"]


async def test_what_is_cached_never_comes_from_a_transaction_that_may_be_undone(
    database_url: str, build: Build, sql: Sql
) -> None:
    """R20, R24: lanes of a rolled-back insert are there for the next one; a rate that was only set in a transaction is
    not known outside of it."""
    async with build(plain, limited, queues={"limited": 1}, rate_limits={"fast": Rate(10, per=1)}).client() as engine:
        async with await psycopg.AsyncConnection.connect(database_url) as conn:
            await engine.insert(limited.bind(n=1), key="k1", conn=conn)
            assert await engine.set_limit("slow", Rate(1, per=10), conn=conn)
            await conn.rollback()
        await engine.insert(limited.bind(n=1), key="k2")
        assert [lane for (lane,) in await sql("SELECT queue FROM {s}.lanes")] == ["limited"]
        with pytest.raises(InvalidArgument, match="slow"):
            await engine.insert(plain.bind(n=1), rate_limit="slow")


async def test_a_caller_does_not_wait_for_himself(database_url: str, build: Build, sql: Sql) -> None:
    """R20: the first use of a queue that the transaction itself has paused: told soon, and the transaction goes on."""
    async with build(plain, queues={}).client() as engine:
        async with await psycopg.AsyncConnection.connect(database_url) as conn:
            await sql("INSERT INTO {s}.queues (name) VALUES ('default')")
            await engine.pause_queue("default", conn=conn)
            with pytest.raises(DatabaseError, match="at its end") as raised:
                await engine.insert(plain.bind(n=1), key="k1", conn=conn)
            assert not isinstance(raised.value, DatabaseUnreachable)
            await engine.resume_queue("default", conn=conn)
        await engine.insert(plain.bind(n=1), key="k2")
        assert await keys(sql) == ["k2"]


# What is refused ----------------------------------------------------------------------------------


async def test_what_is_no_connection_is_refused_with_its_mend(database_url: str, build: Build) -> None:
    """R20, section 14: before anything is sent, naming the type and what to give instead; never a password."""
    async with build(plain, queues={}).client() as engine:

        async def refused(conn: Any) -> str:
            with pytest.raises(InvalidArgument) as raised:
                await engine.insert(plain.bind(n=1), conn=conn)
            return str(raised.value)

        assert "a string" in await refused("postgresql://u:secret@h/d")
        assert "secret" not in await refused("postgresql://u:secret@h/d")
        assert "psycopg AsyncConnection" in await refused(3)
        sync_engine = sa.create_engine(sa_url(database_url, "psycopg"))
        assert "engine.begin()" in await refused(sync_engine)
        assert "session" in await refused(orm.sessionmaker(sync_engine))
        pool = psycopg_pool.AsyncConnectionPool(database_url, open=False)
        assert "pool.connection()" in await refused(pool)
        given = conninfo.conninfo_to_dict(database_url)
        asyncpg_pool = asyncpg.create_pool(
            host=given["host"],
            port=given["port"],
            user=given["user"],
            database=given["dbname"],
            password=given.get("password"),
            min_size=0,
        )
        assert "pool.acquire()" in await refused(asyncpg_pool)
        async with asyncpg_pool:
            async with asyncpg_pool.acquire() as released:
                pass
            assert "closed" in await refused(released)
        async with await psycopg.AsyncConnection.connect(database_url) as conn:
            assert "cursor.connection" in await refused(conn.cursor())
        assert "closed" in await refused(conn)
        sqlite = sa.create_engine("sqlite://")
        with sqlite.connect() as other:
            assert "sqlite" in await refused(other)
        sqlite.dispose()


async def test_a_blocking_client_takes_no_async_connection(database_url: str, build: Build) -> None:
    """R20: it could not wait for it."""
    async with build(plain, queues={}).client() as engine, KINDS["asyncpg"](database_url) as caller:
        with engine.sync_client() as client, pytest.raises(InvalidArgument, match="async connection"):
            client.insert(plain.bind(n=1), conn=caller.conn)


async def test_a_connection_to_another_database_is_refused(
    database_url: str, build: Build, schema: str, sql: Sql
) -> None:
    """R20, section 14: one without the schema, and one that has a schema of the same name; its transaction goes on."""
    other = f"{schema}_db"
    await sql(f"CREATE DATABASE {other}")
    url = conninfo.make_conninfo(database_url, dbname=other)
    try:
        async with build(plain, queues={}).client() as engine:
            async with await psycopg.AsyncConnection.connect(url) as conn:
                with pytest.raises(SchemaMissing, match=f"{other}.*{schema}"):
                    await engine.insert(plain.bind(n=1), conn=conn)
                assert await (await conn.execute("SELECT 1")).fetchall() == [(1,)]
            await Engine(url, schema=schema, name=other).migrate()
            async with await psycopg.AsyncConnection.connect(url) as conn:
                with pytest.raises(InvalidArgument, match=f"another database.*{other}"):
                    await engine.insert(plain.bind(n=1), conn=conn)
                assert await (await conn.execute("SELECT 1")).fetchall() == [(1,)]
    finally:
        await sql(f"DROP DATABASE {other} WITH (FORCE)")


@pytest.mark.parametrize("grant", ["", "GRANT USAGE ON SCHEMA {s} TO {s}_role"])
async def test_a_user_without_rights_is_told_which_is_missing(
    database_url: str, build: Build, sql: Sql, grant: str
) -> None:
    """Section 14: of the connection that was given, whose user may be another than the engine's."""
    async with build(plain, queues={}).client() as engine:
        await sql("CREATE ROLE {s}_role")
        try:
            if grant:
                await sql(grant)
            async with await psycopg.AsyncConnection.connect(database_url) as conn:
                await conn.execute(f"SET ROLE {engine.settings.schema}_role".encode())
                with pytest.raises(DatabaseError, match=r"the user of the connection of conn= may not.*Grant"):
                    await engine.insert(plain.bind(n=1), conn=conn)
        finally:
            await sql("DROP OWNED BY {s}_role")
            await sql("DROP ROLE {s}_role")


async def test_a_client_that_is_not_open_takes_no_connection(database_url: str, build: Build) -> None:
    """Section 14: used before start."""
    engine = build(plain)
    async with await psycopg.AsyncConnection.connect(database_url) as conn:
        with pytest.raises(EngineStateError):
            await engine.insert(plain.bind(n=1), conn=conn)


async def test_a_connection_that_breaks_is_reported_as_such(
    kind: str, database_url: str, build: Build, sql: Sql
) -> None:
    """R20, R27: as the client's own would be, whether its driver has heard of it yet or not."""
    loop = asyncio.get_running_loop()
    told: list[str] = []
    surprises: list[Exception] = []

    async def broken(caller: Caller, call: Call) -> None:
        with pytest.raises(DatabaseUnreachable) as raised:
            await call("insert", plain.bind(n=1), key="k2", conn=caller.conn)
        told.append(str(raised.value))

    async def work(caller: Caller, call: Call) -> None:
        await caller.begin()
        await call("insert", plain.bind(n=1), key="k1", conn=caller.conn)
        await elsewhere(caller, loop, _cut(sql))
        try:
            await broken(caller, call)
            if not kind.startswith(("sqlalchemy", "django")):  # these begin anew, or want a rollback first
                await broken(caller, call)
        except Exception as error:
            surprises.append(error)

    async with build(plain, queues={}).client() as engine:
        with contextlib.suppress(Exception):  # its library's, when the caller closes what is broken
            await asyncio.wait_for(lend(kind, database_url, engine, work), LONG)
        assert surprises == []
        assert told
        assert all("the connection of conn= " in each and "broke" in each for each in told)
        assert await keys(sql) == []


async def test_a_connection_that_its_driver_knows_to_be_broken(database_url: str, build: Build, sql: Sql) -> None:
    """R27: asyncpg hears of it while nothing runs. It is to be tried again with another one, not a wrong argument."""
    async with build(plain, queues={}).client() as engine, KINDS["asyncpg"](database_url) as caller:
        await caller.begin()
        await engine.insert(plain.bind(n=1), conn=caller.conn)
        await _cut(sql)
        async with asyncio.timeout(LONG):
            while not caller.conn.is_closed():
                await asyncio.sleep(0)
        with pytest.raises(DatabaseUnreachable, match="the connection of conn= is closed"):
            await engine.insert(plain.bind(n=2), conn=caller.conn)


async def _cut(sql: Sql) -> None:
    """Ends the one session that has just used the test's schema in a transaction that is open."""
    rows = await sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE state = 'idle in transaction' AND query LIKE '%{s}%'"
    )
    assert len(rows) == 1
