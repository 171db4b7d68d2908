"""Starting, stopping, starting again; what an engine says when it can't; drains within one process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from engine_support import LONG, Build, Seen, Sql, ended, eventually, moment
from test_births import worker_of

from gen_durable import Context, Done, Engine, Machine, Next, job, step
from gen_durable._store.migrating import latest_version, migrations
from gen_durable.errors import (
    ConfigurationError,
    DatabaseUnreachable,
    EngineStateError,
    SchemaMissing,
    SchemaVersionError,
)


@job
async def noop(n: int = 0) -> int:
    return n


def _calls(engine: Engine) -> dict[str, Callable[[], Any]]:
    return {
        "insert": lambda: engine.insert(noop.bind()),
        "insert_many": lambda: engine.insert_many([noop.bind()]),
        "get": lambda: engine.get(1),
        "list": engine.list,
        "result": lambda: engine.result(1),
        "history": lambda: engine.history("key"),
        "pause_queue": lambda: engine.pause_queue("default"),
        "resume_queue": lambda: engine.resume_queue("default"),
        "counts": engine.counts,
        "workers": engine.workers,
    }


async def test_every_call_is_refused_before_start_and_after_stop(build: Build) -> None:
    """Section 14: use before start and after stop is an ``EngineStateError`` that says how to start."""
    engine = build(noop)
    for when in ("before", "after"):
        for name, call in _calls(engine).items():
            with pytest.raises(EngineStateError, match="is not started: use it inside `async with engine:`"):
                await call()
            assert name, when
        async with engine:
            await engine.insert(noop.bind())


async def test_a_handle_outlives_its_engine_only_in_name(build: Build) -> None:
    """Section 14: a handle of a stopped engine says so; started again, it answers."""
    engine = build(noop)
    async with engine:
        handle = await engine.insert(noop.bind(n=4))
        assert await handle.result(timeout=10) == 4
    with pytest.raises(EngineStateError):
        await handle.get()
    async with engine.client():
        assert await handle.result(timeout=1) == 4


async def test_a_wait_for_a_result_ends_with_the_engine(build: Build) -> None:
    """Section 14: a task that waits for a result when the engine stops is told, and does not hang."""

    async with build(noop, queues={}) as engine:
        handle = await engine.insert(noop.bind(), delay=1000)
        waiting = asyncio.create_task(handle.result())
        await handle.get()
    with pytest.raises(EngineStateError):
        await asyncio.wait_for(waiting, 5)


async def test_an_engine_can_be_started_again_and_again(build: Build) -> None:
    """Section 2: ``async with`` twice, and as a client in between; each worker has an id of its own."""
    engine = build(noop)
    ids = []
    for n in range(3):
        async with engine:
            assert await (await engine.insert(noop.bind(n=n))).result(timeout=10) == n
            (worker,) = await engine.workers()
            ids.append(worker.id)
        async with engine.client():
            assert await engine.workers() == []
    assert len(set(ids)) == 3


async def test_an_engine_is_started_once_at_a_time(build: Build) -> None:
    """Section 14: the same engine, or another of its name, can't be started beside itself; the first goes on."""
    engine, twin = build(noop, name="one"), build(noop, name="one")
    async with engine:
        for other in (engine, twin):
            for start in (other, other.client()):
                with pytest.raises(EngineStateError, match="an engine named 'one' runs in this process already"):
                    await start.__aenter__()
        assert await (await engine.insert(noop.bind(n=1))).result(timeout=10) == 1
    async with twin, build(noop, name="two"):
        pass


async def test_stop_may_come_early_late_and_twice(build: Build) -> None:
    """Section 2: ``stop`` before the start, twice at once, and after the end does no harm."""
    engine = build(noop)
    await engine.stop()
    async with engine:
        handle = await engine.insert(noop.bind(n=2))
        assert await handle.result(timeout=10) == 2
        await asyncio.gather(engine.stop(), engine.stop())
        await engine.stop()
    async with engine:
        assert await handle.result(timeout=10) == 2


async def test_a_client_runs_nothing(build: Build) -> None:
    """Section 2: ``client()`` and ``queues={}`` open the client only; ``run()`` of a web node is refused."""
    async with build(noop, queues={"default": 1}).client() as one, build(noop, queues={}) as two:
        handles = [await one.insert(noop.bind()), await two.insert(noop.bind())]
        assert await one.workers() == []
        for handle in handles:
            assert (await handle.get()).status == "runnable"
        async with build(noop):
            for handle in handles:
                assert await handle.result(timeout=10) == 0
    with pytest.raises(ConfigurationError, match=r"queues=\{\}"):
        await build(noop, queues={}).run()


async def test_engines_of_several_schemas_live_in_one_process(database_url: str, schema: str, sql: Sql) -> None:
    """Section 11: engines on different schemas don't see each other's rows, wake-ups, queues or pauses."""
    names = [f"{schema}_a", f"{schema}_b"]
    engines = [Engine(database_url, machines=[noop], schema=name, name=name) for name in names]
    try:
        for engine in engines:
            await engine.migrate()
        async with engines[0] as one, engines[1] as two:
            await one.pause_queue("default")
            held = await one.insert(noop.bind(n=1), key="same key")
            free = await two.insert(noop.bind(n=2), key="same key")
            assert await free.result(timeout=10) == 2
            assert (await held.get()).status == "runnable"
            assert [worker.name for worker in await one.workers()] == [names[0]]
            await one.resume_queue("default")
            assert await held.result(timeout=10) == 1
            assert len((await two.list()).items) == 1
    finally:
        await sql("SET client_min_messages = error")
        for name in names:
            await sql(f"DROP SCHEMA IF EXISTS {name} CASCADE")


async def test_a_warning_names_a_machine_whose_queue_is_not_run_here(build: Build, caplog: Any) -> None:
    """Section 14: a machine whose queue this engine does not run gets a warning at the start, not a silent stall."""

    @job(queue="mail")
    async def send() -> None: ...

    with caplog.at_level(logging.WARNING, "gen_durable"):
        async with build(send, noop):
            pass
    assert [r.getMessage() for r in caplog.records if "'mail'" in r.getMessage()]
    assert "noop" not in caplog.text


# Schemas and databases ------------------------------------------------------------------------------


@pytest.mark.parametrize("queues", [{"default": 1}, {}])
async def test_a_missing_schema_is_refused_with_the_command_to_run(
    database_url: str, schema: str, queues: dict[str, int]
) -> None:
    """Section 14: ``SchemaMissing`` says what to run; nothing is started, and after the migration it starts."""
    engine = Engine(database_url, machines=[noop], schema=schema, name=schema, queues=queues)
    for start in (engine, engine.client()):
        with pytest.raises(SchemaMissing, match=f"gen-durable migrate --schema {schema}"):
            await start.__aenter__()
    await engine.migrate()
    async with engine:
        await engine.insert(noop.bind())


async def test_another_schema_version_is_refused(build: Build, sql: Sql) -> None:
    """Section 11: an engine that meets an older or newer schema refuses to start and says what to do."""
    await sql("DELETE FROM {s}.migrations WHERE version > 1")
    for version, message in ((0, "run `gen-durable migrate"), (latest_version() + 1, "upgrade gen-durable")):
        await sql("DELETE FROM {s}.migrations")
        await sql("INSERT INTO {s}.migrations (version, name) VALUES (%s, 'other')", version)
        engine = build(noop)
        for start in (engine, engine.client()):
            with pytest.raises(SchemaVersionError, match=message) as caught:
                await start.__aenter__()
            assert f"version {version}" in str(caught.value)
    with pytest.raises(SchemaVersionError, match="upgrade gen-durable"):
        await build(noop).migrate()
    await sql("DELETE FROM {s}.migrations")
    with pytest.raises(SchemaVersionError, match="version 0"):
        await build(noop).client().__aenter__()


async def test_migrating_twice_and_from_many_tasks_at_once_is_one_migration(database_url: str, schema: str) -> None:
    """Section 11: safe to run twice and concurrently; who comes second finds nothing to do."""
    engines = [Engine(database_url, machines=[noop], schema=schema, name=f"{schema}{n}") for n in range(6)]
    ran = await asyncio.gather(*(engine.migrate() for engine in engines))
    assert sorted(map(len, ran)) == [0, 0, 0, 0, 0, len(migrations(schema))]
    assert await engines[0].migrate() == []
    async with engines[0] as engine:
        assert await (await engine.insert(noop.bind(n=1))).result(timeout=10) == 1
        assert await engines[1].migrate() == []


@pytest.mark.parametrize("queues", [{"default": 1}, {}])
async def test_an_unreachable_database_is_named_without_its_password(queues: dict[str, int]) -> None:
    """Section 14: host, port, database and user are in the message; the password never."""
    url = "postgresql://me:s3cr3t@127.0.0.1:1/orders"
    engine = Engine(url, machines=[noop], queues=queues, name="nowhere", statement_timeout=2)
    for call in (engine.__aenter__, engine.client().__aenter__, engine.migrate):
        with pytest.raises(DatabaseUnreachable) as caught:
            await call()
        for part in ("host 127.0.0.1", "port 1", "database orders", "user me", "Check that the server runs"):
            assert part in str(caught.value)
        assert "s3cr3t" not in str(caught.value)
    await engine.stop()


async def test_a_wrong_password_is_not_shown(database_url: str) -> None:
    """Section 14: neither is one that the server refuses."""
    from psycopg import conninfo

    given = conninfo.conninfo_to_dict(database_url)
    url = conninfo.make_conninfo(**{**given, "user": "nobody_here", "password": "s3cr3t"})
    with pytest.raises(DatabaseUnreachable) as caught:
        await Engine(url, name="nobody", machines=[noop]).migrate()
    assert "s3cr3t" not in str(caught.value)
    assert "user nobody_here" in str(caught.value)


async def test_the_url_comes_from_the_environment_in_order(
    database_url: str, migrated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section 2: ``url``, then ``GEN_DURABLE_DATABASE_URL``, then ``DATABASE_URL``; never the embedded one unasked."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://x@127.0.0.1:1/second")
    with pytest.raises(DatabaseUnreachable, match="database second"):
        await Engine(schema=migrated, name="a").migrate()
    monkeypatch.setenv("GEN_DURABLE_DATABASE_URL", database_url)
    async with Engine(schema=migrated, name="a", machines=[noop]) as engine:
        await engine.insert(noop.bind())
    monkeypatch.delenv("GEN_DURABLE_DATABASE_URL")
    monkeypatch.delenv("DATABASE_URL")
    with pytest.raises(ConfigurationError, match="DATABASE_URL"):
        await Engine(schema=migrated, name="a", machines=[noop]).run()
    with pytest.raises(ConfigurationError, match="embedded=True"):
        await Engine(schema=migrated, name="a", embedded=False).migrate()


# Drain ----------------------------------------------------------------------------------------------


async def test_a_drain_lets_running_steps_finish_and_hands_the_rest_back(build: Build, sql: Sql) -> None:
    """R26: what runs is finished and committed, what waits is untouched, nothing new starts."""
    started, go = asyncio.Event(), asyncio.Event()
    runs: list[int] = []

    @job
    async def slow(n: int) -> int:
        runs.append(n)
        started.set()
        await go.wait()
        return n

    engine = build(slow, queues={"default": 2})
    async with engine:
        drains = Seen(engine, "drain")
        report = await engine.insert_many(slow.bind(n=n) for n in range(6))
        await started.wait()
        stopping = asyncio.create_task(engine.stop())
        await drains.until(lambda seen: seen)
        await moment(0.2)
        go.set()
        await stopping
    assert drains.all[0].running in (1, 2)
    rows = await sql("SELECT status, worker, attempt, crashes FROM {s}.instances")
    assert set(rows) == {(0, None, 0, 0)}
    assert len(rows) == 6 - len(runs) >= 4
    assert await sql("SELECT count(*) FROM {s}.finished") == [(len(runs),)]
    assert await sql("SELECT count(*) FROM {s}.workers") == [(0,)]
    async with build(slow):
        pass
    async with build(slow) as other:
        for item in report:
            await other.result(item.id, timeout=10)


@pytest.mark.parametrize("hurry", ["timeout", "second stop"])
async def test_the_end_of_a_drain_cancels_and_hands_back(build: Build, sql: Sql, hurry: str) -> None:
    """R26: at ``drain_timeout``, or at a second stop, running steps are cancelled and their rows go back at once."""
    started = asyncio.Event()
    cleaned: list[str] = []
    release = threading.Event()
    first = [True]

    class Long(Machine):
        @step
        async def before(self, ctx: Context) -> Next:
            return Next(self.work)

        @step
        async def work(self, ctx: Context) -> Done:
            if first[0]:
                started.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    cleaned.append("async")
            return Done("again")

    @job
    def threaded() -> str:
        if first[0]:
            release.wait(20)
        return "again"

    engine = build(Long, threaded, drain_timeout=0.1 if hurry == "timeout" else 60)
    async with engine:
        handles = [await engine.insert(Long()), await engine.insert(threaded.bind())]
        await started.wait()

        async def both() -> bool:
            return (await sql("SELECT count(*) FROM {s}.instances WHERE status = 2"))[0][0] == 2

        await eventually(both)
        if hurry != "timeout":
            drains = Seen(engine, "drain")
            stopping = asyncio.create_task(engine.stop())
            await drains.until(lambda seen: seen)
            await asyncio.wait_for(engine.stop(), 10)
            await stopping
    assert cleaned == ["async"]
    assert await sql("SELECT status, worker, attempt, crashes FROM {s}.instances") == [(0, None, 0, 0)] * 2
    first[0] = False
    async with build(Long, threaded) as other:
        for handle in handles:
            assert await other.result(handle.id, timeout=10) == "again"
        assert [t.outcome for t in await other.history(handles[0].id)] == ["next", "done"]
    release.set()


async def test_a_step_that_refuses_to_be_cancelled_does_not_keep_the_engine(build: Build, sql: Sql) -> None:
    """R26: a step that swallows its cancellation ends the drain all the same; what it returned counts if it can."""
    started = asyncio.Event()

    @job
    async def stubborn() -> str:
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "I finish first"

    async with build(stubborn, drain_timeout=0.05) as engine:
        handle = await engine.insert(stubborn.bind())
        await started.wait()
    async with build(stubborn, queues={}) as web:
        assert await web.result(handle.id, timeout=1) == "I finish first"


async def test_an_error_in_the_body_drains_too(build: Build, sql: Sql) -> None:
    """Section 2: when the body of ``async with`` raises, the worker is drained and the error goes on."""

    async def body() -> None:
        async with build(noop) as engine:
            handle = await engine.insert(noop.bind())
            await handle.result(timeout=10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await body()
    assert await sql("SELECT count(*) FROM {s}.workers") == [(0,)]


async def test_a_cancelled_host_leaves_nothing_behind(build: Build, sql: Sql) -> None:
    """Section 2: a task that holds the engine and is cancelled drains it: no task, thread or registration stays."""
    ready = asyncio.Event()

    async def host() -> None:
        async with build(noop):
            ready.set()
            await asyncio.Event().wait()

    before = {thread.name for thread in threading.enumerate()}
    task = asyncio.create_task(host())
    await ready.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await sql("SELECT count(*) FROM {s}.workers") == [(0,)]
    assert not [t.name for t in threading.enumerate() if "control" in t.name and t.name not in before]


async def test_a_start_that_is_cancelled_leaves_nothing_behind(build: Build, sql: Sql) -> None:
    """Section 2: whenever a start is cancelled, no connection, thread or registration stays, and it can start again."""

    def controls() -> int:
        return sum("gen_durable control" in thread.name for thread in threading.enumerate())

    before = controls()
    engine = build(noop)
    for n in range(16):
        starting = asyncio.create_task(engine.__aenter__())
        await moment(0.004 * n)
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
            await engine.stop()
        assert controls() == before
    assert await sql("SELECT count(*) FROM {s}.workers") == [(0,)]
    name = f"gen_durable {engine.settings.name}%"[:63]
    assert await eventually(lambda: _nobody(sql, name))
    async with engine:
        assert await (await engine.insert(noop.bind(n=1))).result(timeout=10) == 1


async def _nobody(sql: Sql, name: str) -> bool:
    return await sql("SELECT 1 FROM pg_stat_activity WHERE application_name LIKE %s", name) == []


# A worker that others took for dead -----------------------------------------------------------------


async def test_a_worker_that_was_declared_dead_starts_a_new_life(build: Build, sql: Sql) -> None:
    """R25, R4: without its row it drops what it holds, registers anew, and goes on; a late outcome changes nothing."""
    started = asyncio.Event()
    lives: list[tuple[int, int]] = []

    @job
    async def held(ctx: Context) -> int:
        lives.append((ctx.worker, ctx.crashes))
        started.set()
        if len(lives) == 1:
            await asyncio.Event().wait()
        return ctx.attempt

    async with build(held, lease=2, heartbeat=0.1) as engine:
        handle = await engine.insert(held.bind())
        await started.wait()
        (before,) = await engine.workers()
        await sql("DELETE FROM {s}.workers")
        assert await handle.result(timeout=10) == 1
        (after,) = await engine.workers()
        found = await ended(handle)
        history = await engine.history(handle.id)
    assert before.id != after.id == found.worker
    assert lives == [(before.id, 0), (after.id, 1)]
    assert [t.outcome for t in history] == ["crashed", "done"]


@pytest.mark.parametrize("count", [1, 3])
async def test_outcomes_that_come_when_their_worker_is_dead_stop_nothing(build: Build, sql: Sql, count: int) -> None:
    """R25, R27: a commit over a link that is closed for good is not tried for ever, and the event loop goes on."""
    go, running = asyncio.Event(), asyncio.Semaphore(0)

    @job
    async def held(n: int) -> int:
        running.release()
        await go.wait()
        return n

    async with build(held, lease=2, heartbeat=0.1, queues={"default": count}) as engine, asyncio.timeout(LONG):
        handles = [await engine.insert(held.bind(n=n)) for n in range(count)]
        for _ in range(count):
            await running.acquire()
        (before,) = await engine.workers()
        for link in worker_of(engine)._links:
            link.abort()  # as at the end of a life, and the flusher is not cancelled yet
        go.set()  # the outcomes come while the next statement is under way
        await sql("DELETE FROM {s}.workers")
        for n, handle in enumerate(handles):
            assert await handle.result(timeout=LONG) == n
        (after,) = await engine.workers()
        assert after.id != before.id


async def test_crash_loops_end(build: Build, sql: Sql) -> None:
    """R25: after ``max_crashes`` deaths in one step the instance fails with that reason, without another run."""
    runs: list[int] = []

    @job(max_crashes=2)
    async def poison(ctx: Context) -> None:
        runs.append(ctx.crashes)

    async with build(poison, queues={}) as web:
        handle = await web.insert(poison.bind())
        for _ in range(2):
            await sql("UPDATE {s}.instances SET crashes = crashes + 1, attempt = attempt + 1")
        async with build(poison):
            found = await ended(handle)
    assert (found.status, runs) == ("failed", [])
    assert found.error is not None
    assert "its worker died 2 times in step 'run'" in found.error["message"]


async def test_a_stop_amid_a_service_s_statement_is_quiet(
    build: Build, connect: Callable[[], Any], sql: Sql, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    """R26: nobody hears of the statement that the stop cuts off, here the pruner's, which waits for a lock."""
    blocker = await connect()
    async with blocker.transaction():
        await blocker.execute(f"LOCK TABLE {schema}.finished".encode())

        async def waits() -> bool:
            asked = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE %s AND wait_event_type = 'Lock'"
            return bool(await sql(asked, f"%{schema}%"))

        with caplog.at_level(logging.WARNING):
            async with build(noop):
                await eventually(waits)
    assert [record.getMessage() for record in caplog.records] == []
