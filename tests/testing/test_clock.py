"""The clock of a schema for tests: moved for everybody who uses it, and only there."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from gen_durable import Context, Done, Engine, Machine, Sleep, job, step, testing
from gen_durable._store.migrating import migrations
from gen_durable._store.operation import catalog
from gen_durable.errors import ConfigurationError, EngineStateError, InvalidArgument

Build = Callable[..., Engine]


@job
async def noop() -> None: ...


class Nap(Machine):
    seconds: float

    @step
    async def lie_down(self, ctx: Context) -> Sleep:
        return Sleep(self.seconds, self.get_up)

    @step
    async def get_up(self, ctx: Context) -> Done:
        return Done()


async def test_advance_moves_the_clock_by_so_much(durable_engine: Build) -> None:
    """Section 13: ``advance`` moves the engine's clock; it answers with what that says then."""
    engine = durable_engine(machines=[noop])
    async with engine.client():
        began = await testing.clock(engine)
        for by in (3600, timedelta(days=400), 0, 0.25):
            before = await testing.clock(engine)
            after = await testing.advance(engine, by)
            took = after - before - (by if isinstance(by, timedelta) else timedelta(seconds=by))
            assert timedelta(0) <= took < timedelta(seconds=5)
        assert await testing.clock(engine) - began >= timedelta(days=400, seconds=3600.25)
        assert (await engine.get((await engine.insert(noop.bind())).id)).inserted_at >= after


async def test_a_sleep_ends_at_its_time_and_not_before(durable_engine: Build) -> None:
    """R6: due times are by the engine's clock."""
    engine = durable_engine(machines=[Nap])
    async with engine.client():
        handle = await engine.insert(Nap(seconds=1000))
        await testing.drain(engine, collapse=False)
        due = (await handle.get()).due_at
        assert due is not None
        now = await testing.clock(engine)
        await testing.advance(engine, due - now - timedelta(seconds=30))
        assert (await testing.drain(engine, collapse=False)).runs == 0
        await testing.advance(engine, 30)
        assert (await testing.drain(engine, collapse=False)).outcomes == {"done": 1}


async def test_a_running_worker_notices_at_once(durable_engine: Build) -> None:
    """Section 13: no test sleeps. The worker's timers look again when the clock moves; a poll would take a minute."""
    engine = durable_engine(machines=[Nap, noop], poll_interval=60)
    asleep = asyncio.Event()
    engine.on("commit", lambda event: asleep.set())
    async with engine:
        naps = [await engine.insert(Nap(seconds=86_400)), await engine.insert(noop.bind(), delay=86_400)]
        async with asyncio.timeout(10):
            await asleep.wait()
            await testing.advance(engine, 86_400)
            for nap in naps:
                await nap.result()
        assert len(await engine.workers()) == 1


async def test_workers_do_not_die_of_it(durable_engine: Build) -> None:
    """R25: whether a worker lives goes by the real clock, and by what is no one's to bring forward."""
    one, two = durable_engine(machines=[noop]), durable_engine(machines=[noop])
    dead: list[Any] = []
    for engine in (one, two):
        engine.on("worker_dead", dead.append)
    async with one, two:
        await testing.advance(one, 86_400)
        assert one._worker is not None
        assert two._worker is not None
        for worker in (one._worker, two._worker):
            await worker._reaper.once()
        assert (await one.workers())[0].silent < 60
        assert len(await one.workers()) == 2
    assert dead == []


async def test_engines_of_one_schema_share_it(durable_engine: Build) -> None:
    one, two = durable_engine(machines=[noop]), durable_engine()
    async with one.client():
        await testing.advance(one, 5000)
        async with two.client():
            apart = await testing.clock(two) - await testing.clock(one)
            assert abs(apart) < timedelta(seconds=5)
            await testing.advance(two, 5000)
            handle = await one.insert(noop.bind(), delay=100)
            await testing.advance(two, 100)
            assert (await testing.drain(one, collapse=False)).outcomes == {"done": 1}
            await testing.assert_done(two, handle)


async def test_another_process_that_knows_nothing_of_tests_shares_it(
    durable_engine: Build, durable_database: str, durable_schema: str
) -> None:
    """The schema says which clock it has, so a worker process of a test needs no setting."""
    program = (
        "import asyncio, sys\nfrom gen_durable import Engine\n"
        "async def main():\n"
        "    async with Engine(sys.argv[1], schema=sys.argv[2]).client() as engine:\n"
        "        rows = await engine._session.fetch(engine._sql['testing/clock'].bind())\n"
        "        print(rows[0][0].timestamp())\n"
        "asyncio.run(main())\n"
    )
    engine = durable_engine(machines=[noop])
    async with engine.client():
        await testing.advance(engine, timedelta(days=30))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, durable_database, durable_schema, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await process.communicate()
        assert abs(float(said) - (await testing.clock(engine)).timestamp()) < 60


async def test_functions_of_the_schema_go_by_it(durable_engine: Build, sql: Any) -> None:
    """The migrations are made with the clock: partitions for the days to come, the time of a pause."""
    engine = durable_engine(machines=[noop])
    async with engine.client():
        now = await testing.advance(engine, timedelta(days=20))
        await engine.pause_queue("default")
        ((paused_at,),) = await sql("SELECT paused_at FROM {s}.queues WHERE name = 'default'")
        assert paused_at >= now
        await engine.resume_queue("default")
        await testing.drain(engine)
        ((there,),) = await sql("SELECT to_regclass('{s}.transitions_' || %s)", f"{now:%Y%m%d}")
        assert there is not None


async def test_production_schemas_have_no_such_clock(build: Build, migrated: str, durable_engine: Build) -> None:
    """A clock that can be moved is made with the schema, or never; and it costs others nothing: not one statement."""
    engine = build(noop)
    async with engine.client():
        told = {name for name, statement in engine._sql.items() if b".clock()" in statement.text}
        assert told == {"workers/version"}  # which asks whether there is one
        with_clock = catalog(migrated, test_clock=True)
        assert not [name for name in with_clock if name.startswith("queues/") and b".clock()" in with_clock[name].text]
        assert await testing.clock(engine)
        with pytest.raises(EngineStateError, match=f"'{migrated}' keeps the real clock.*testing.migrate"):
            await testing.advance(engine, 5)
    with pytest.raises(ConfigurationError, match="without a test clock"):
        await testing.migrate(engine)
    assert all(".clock()" not in migration.sql for migration in migrations(migrated))
    assert any(".clock()" in migration.sql for migration in migrations(migrated, test_clock=True))


async def test_migrate_makes_a_schema_for_tests_and_keeps_its_clock(build: Build, durable_database: str) -> None:
    name = "t_migrated_for_tests"
    engine = Engine(durable_database, schema=name, name=name, machines=[noop])
    try:
        assert await testing.migrate(engine) == [migration.name for migration in migrations(name)]
        assert await testing.migrate(engine) == await engine.migrate() == []
        async with engine.client():
            await testing.advance(engine, 5)
    finally:
        async with await psycopg.AsyncConnection.connect(durable_database, autocommit=True) as connection:
            await connection.execute("SET client_min_messages = error")
            await connection.execute(f"DROP SCHEMA {name} CASCADE".encode())


async def test_it_refuses_what_is_no_duration(durable_engine: Build) -> None:
    """Section 14."""
    engine = durable_engine(machines=[noop])
    with pytest.raises(EngineStateError, match="not started"):
        await testing.advance(engine, 5)
    with pytest.raises(EngineStateError, match="not started"):
        await testing.clock(engine)
    async with engine.client():
        for wrong in (-1, timedelta(seconds=-1), float("nan"), "1 h", None, True):
            with pytest.raises(InvalidArgument, match="advance"):
                await testing.advance(engine, wrong)  # type: ignore[arg-type]
