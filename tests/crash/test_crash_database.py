"""The database goes away under load: an immediate stop, a backend that is killed, a long absence."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from chaos_worker import MACHINES, Chain, Hold, open_journal, quick
from harness import Chaos, Server, until

from gen_durable import Engine
from gen_durable.events import ReconnectEvent, WorkerDeadEvent

pytestmark = pytest.mark.crash


@pytest.fixture
async def farm(server: Server, tmp_path: Path) -> AsyncIterator[Chaos]:
    """A migrated schema on the server, for worker processes."""
    await Engine(server.url, schema="farm", name="farm").migrate()
    started = Chaos(server.url, "farm", tmp_path)
    yield started
    started.close()


@contextlib.asynccontextmanager
async def host(
    farm: Chaos, **settings: object
) -> AsyncIterator[tuple[Engine, list[ReconnectEvent], list[WorkerDeadEvent]]]:
    """An application with a worker inside."""
    open_journal(str(farm.journal))
    engine = Engine(farm.url, machines=MACHINES, schema="farm", name="host", **settings)  # type: ignore[arg-type]
    reconnects: list[ReconnectEvent] = []
    deaths: list[WorkerDeadEvent] = []
    engine.on("reconnect", reconnects.append)
    engine.on("worker_dead", deaths.append)
    async with engine:
        yield engine, reconnects, deaths


async def test_nothing_is_lost_when_the_server_crashes_under_load(server: Server, farm: Chaos) -> None:
    """R3, R25, R27: two crashes of the server under load: every instance ends once, with its own numbers; no worker
    is taken for dead, no claim is lost, the application that hosts a worker goes on."""
    async with host(farm) as (engine, reconnects, deaths):
        workers = [await farm.worker(), await farm.worker()]
        ids = {process.pid: await farm.registered(process) for process in workers}
        inserted = await engine.insert_many([Chain(total=40, pause=0.02) for _ in range(300)])
        sleeper = await engine.insert(Hold(seconds=8.0))
        for progress in (1500, 6000):
            await until(lambda progress=progress: len(farm.notes("run")) > progress)  # type: ignore[misc]
            assert farm.left() > 0
            await server.crash_and_restart()
        await farm.settled(60)
        assert await sleeper.result(timeout=30) == 0, "a step that ran over both crashes was not disturbed"
        for item in inserted[::50]:
            assert await item.handle.result(timeout=5) == list(range(40))
            assert [t.outcome for t in await engine.history(item.id)] == ["next"] * 39 + ["done"]
        assert {event.connection for event in reconnects} == {"claim", "commit", "service", "control"}
        assert deaths == []
    assert farm.notes("worker_dead") == []
    assert {process.pid: await farm.registered(process) for process in workers} == ids, "nobody had to register anew"
    # Every step's outcome was committed once, and none had to run again: a worker outlives its database.
    assert farm.rows("SELECT count(*), count(DISTINCT id), max(attempt), max(crashes) FROM {schema}.finished") == [
        (301, 301, 0, 0)
    ]
    # Each transition once: the last one of an instance is its terminal row.
    assert farm.rows("SELECT count(*), count(DISTINCT (instance_id, seq)) FROM {schema}.transitions") == [
        (300 * 39, 300 * 39)
    ]


async def test_workers_outlive_an_absence_longer_than_their_lease(server: Server, farm: Chaos) -> None:
    """R25, R27: while the database was away, longer than a lease, nobody could give a sign of life: nobody is dead."""
    settings = {"lease": 3.0, "heartbeat": 0.5}
    async with host(farm, **settings) as (engine, _, deaths):
        workers = [await farm.worker(**settings) for _ in range(2)]
        ids = {process.pid: await farm.registered(process) for process in workers}
        handles = [await engine.insert(Hold(seconds=6.0)) for _ in range(30)]
        await until(lambda: farm.executing() == 30)
        await server.crash_and_restart(absence=5.0)
        await farm.settled()
        for handle in handles:
            assert await handle.result(timeout=30) == 0
        assert deaths == []
    assert farm.notes("worker_dead") == farm.notes("stale") == []
    assert {process.pid: await farm.registered(process) for process in workers} == ids


async def test_workers_outlive_the_crash_of_a_backend(server: Server, farm: Chaos) -> None:
    """R25, R27: kill -9 of one backend makes the server drop all its sessions and locks: nobody is dead for that."""
    async with host(farm) as (engine, reconnects, deaths):
        await farm.worker()
        handles = [await engine.insert(Hold(seconds=6.0)) for _ in range(20)]
        await until(lambda: farm.executing() == 20)
        with psycopg.connect(server.url, autocommit=True) as victim:
            os.kill(victim.info.backend_pid, signal.SIGKILL)
        await farm.settled()
        for handle in handles:
            assert await handle.result(timeout=30) == 0
        assert {event.connection for event in reconnects} >= {"service", "control"}
        assert deaths == []
    assert farm.notes("worker_dead") == farm.notes("stale") == []


async def test_a_dead_worker_is_found_after_a_restart_of_the_server(server: Server, farm: Chaos) -> None:
    """R25: a worker that dies while the database is away is found all the same, within its lease after the return."""
    async with host(farm, queues={"other": 1}, lease=4.0, heartbeat=1.0) as (engine, _, _):
        victim = await farm.worker(lease=4.0, heartbeat=1.0)
        handle = await engine.insert(Hold())
        await until(lambda: farm.executing() == 1)
        server.crash()
        await until(server.gone)
        victim.kill()
        await server.restart()
        await until(lambda: farm.executing() == 0, 10)
        await farm.worker()
        assert await handle.result(timeout=30) == 1


async def test_an_idle_application_outlives_a_crash_and_goes_on(server: Server, farm: Chaos) -> None:
    """R27: with nothing to do while the server is gone, the engine finds it again by itself, and calls work again."""
    async with host(farm) as (engine, reconnects, _):
        assert await (await engine.insert(quick.bind(n=1))).result(timeout=10) == 1
        await server.crash_and_restart(absence=0.5)
        await until(lambda: {event.connection for event in reconnects} >= {"claim", "service", "control"})
        assert await (await engine.insert(quick.bind(n=2))).result(timeout=10) == 2
        assert len(await engine.workers()) == 1


async def test_an_idle_worker_drains_at_once_while_the_database_is_away(server: Server, tmp_path: Path) -> None:
    """R26, R27: it holds nothing, so nothing has to wait for the database; a claim that can't be sent is not one."""
    open_journal(str(tmp_path / "journal"))
    engine = Engine(server.url, machines=MACHINES, poll_interval=0.1, drain_timeout=20)
    await engine.migrate()
    async with engine:
        assert await (await engine.insert(quick.bind(n=1))).result(timeout=10) == 1
        server.crash()
        await until(server.gone, why="the end of the server")
        await until(lambda: engine._worker is not None and engine._worker._links[0].connection is None)
        began = time.monotonic()
    assert time.monotonic() - began < 10
