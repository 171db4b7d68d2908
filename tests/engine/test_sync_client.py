"""The client without async: threads, waits, life, forks, and steps that are plain functions."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from engine_support import LONG, Build, Sql, ended, eventually

from gen_durable import (
    Await,
    Context,
    Done,
    Engine,
    Job,
    Machine,
    Next,
    Rate,
    Schedule,
    SyncClient,
    SyncHandle,
    job,
    step,
    testing,
)  # fmt: skip
from gen_durable._blocking import finish
from gen_durable.errors import (
    ConfigurationError,
    DatabaseUnreachable,
    DuplicateInstance,
    EngineStateError,
    InstanceCancelled,
    InstanceFailed,
    InvalidArgument,
    NoSuchInstance,
    SchemaMissing,
    StillRunning,
)


@job
async def plain(n: int) -> int:
    return n


@job(max_attempts=1)
async def fails() -> None:
    raise ValueError("no")


class Waits(Machine):
    @step
    async def start(self, ctx: Context) -> Await:
        return Await("go", then=self.end)

    @step
    async def end(self, ctx: Context) -> Done:
        return Done(ctx.awaited[0].payload)


def client_of(url: str, schema: str, **settings: Any) -> SyncClient:
    settings.setdefault("machines", [plain, fails, Waits])
    return SyncClient(url, schema=schema, name=f"{schema}_sync", **settings)


async def test_it_inserts_signals_waits_reads_and_steers(database_url: str, build: Build, migrated: str) -> None:
    """Section 9: in a thread without an event loop, with a worker elsewhere."""

    def work() -> None:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        with client_of(database_url, migrated) as client:
            handle = client.insert(plain.bind(n=7), key="k")
            assert isinstance(handle, SyncHandle)
            assert handle.result(LONG) == client.result("k", LONG) == 7
            assert handle.get().status == "done"
            assert [one.outcome for one in client.history(handle.id)] == ["done"]
            assert "ended" in handle.why().reason
            with pytest.raises(InstanceFailed, match="no"):
                client.insert(fails.bind()).result(LONG)
            waits = client.insert(Waits(), key="waits")
            with pytest.raises(DuplicateInstance):
                client.insert(Waits(), key="waits")
            with pytest.raises(StillRunning):
                waits.result(0.05)
            assert waits.signal("go", {"a": 1}, dedup_key="one") is True
            assert waits.result(LONG) == {"a": 1}
            with pytest.raises(NoSuchInstance):
                waits.signal("go", 2)
            gone = client.signal_or_insert(Waits(), key="gone", name="other")
            assert gone.cancel(reason="enough") is True
            with pytest.raises(InstanceCancelled, match="enough"):
                gone.result(LONG)
            client.retry("gone")
            assert client.signal("gone", "go", 3) is True
            assert client.result("gone", LONG) == 3
            assert [one.duplicate for one in client.insert_many([plain.bind(n=1), plain.bind(n=2)])] == [False, False]
            client.pause_queue("default")
            assert [(queue.name, queue.paused) for queue in client.queues()] == [("default", True)]
            client.resume_queue("default")
            client.schedule("daily", "0 9 * * *", plain.bind(n=5))
            assert client.trigger_schedule("daily").result(LONG) == 5
            assert [schedule.name for schedule in client.schedules()] == ["daily"]
            assert client.set_limit("account", 2) is True
            assert [limit.name for limit in client.limits()] == ["account"]
            assert len(client.list(machine="plain").items) == 4
            assert len(client.workers()) == 1
            assert sum(count.count for count in client.counts()) == 7

    async with build(plain, fails, Waits):
        await asyncio.to_thread(work)


async def test_twenty_threads_share_one(build: Build) -> None:
    """Section 9: many wait at once, each gets its own; the caches and the pool are shared."""
    async with build(plain, Waits, poll_interval=60) as engine:
        client = engine.sync_client()

        def work(number: int) -> list[int]:
            got = []
            for n in range(10):
                handle = client.insert(plain.bind(n=number * 100 + n), key=f"{number}:{n}", queue=None)
                waits = client.insert(Waits())
                waits.signal("go", n)
                assert waits.result(LONG) == n
                got.append(handle.result(LONG))
            return got

        with ThreadPoolExecutor(20) as threads:
            loop = asyncio.get_running_loop()
            answers = await asyncio.gather(*(loop.run_in_executor(threads, work, number) for number in range(20)))
        assert answers == [[number * 100 + n for n in range(10)] for number in range(20)]
        assert client._calls._waiters == {}
        await asyncio.to_thread(client.close)


async def test_a_wait_is_woken_by_the_end_and_not_by_a_look(build: Build, sql: Sql) -> None:
    """Section 12: within tens of milliseconds; the next look of its own would come seconds later."""
    async with build(plain, Waits) as engine:
        handles = [await engine.insert(Waits()) for _ in range(8)]
        with_client = engine.sync_client()
        took: dict[int, float] = {}
        sent: dict[int, float] = {}

        def wait(id_: int) -> None:
            assert with_client.result(id_, LONG) == 1
            took[id_] = time.monotonic()

        threads = [threading.Thread(target=wait, args=(handle.id,)) for handle in handles]
        for thread in threads:
            thread.start()

        async def all_watched() -> bool:
            rows = await sql("SELECT count(*) FROM {s}.instances WHERE watched AND status = 3")
            return bool(rows == [(8,)] and with_client._calls._ear.hears)

        await eventually(all_watched)
        for handle in handles:
            sent[handle.id] = time.monotonic()
            await handle.signal("go", 1)
        for thread in threads:
            await asyncio.to_thread(thread.join, LONG)
        assert sorted(took[id_] - sent[id_] for id_ in sent)[4] < 0.25
        await asyncio.to_thread(with_client.close)


def test_it_opens_itself_and_closes_for_good(database_url: str, migrated: str) -> None:
    """Section 14: each call before open() opens it, none after close() does; both may be called twice."""
    before = set(threading.enumerate())
    client = client_of(database_url, migrated)
    assert client.insert(plain.bind(n=1)).id
    client.open()
    client.open()
    client.close()
    client.close()
    with pytest.raises(EngineStateError, match="closed"):
        client.insert(plain.bind(n=1))
    with psycopg.connect(database_url) as conn, pytest.raises(EngineStateError, match="closed"):
        client.insert(plain.bind(n=1), conn=conn)
    with client.open():
        assert len(client.list().items) == 1
    assert [thread for thread in set(threading.enumerate()) - before if "gen_durable" in thread.name] == []


def test_it_migrates(database_url: str, schema: str) -> None:
    """Section 11: also where a loop runs in the thread; before that its calls say what is to be run."""
    client = client_of(database_url, schema)
    with pytest.raises(SchemaMissing, match="migrate"):
        client.get(1)

    async def in_a_loop() -> list[str]:
        return client.migrate()

    assert asyncio.run(in_a_loop())[0].startswith("0001")
    assert client.migrate() == []
    with client:
        assert client.counts() == []


def test_what_its_settings_declare_is_made_sure_of_when_it_opens(database_url: str, migrated: str) -> None:
    """Sections 8, 10: limits and schedules, as when an engine starts; a wrong rate is refused then."""

    @job(rate_limit="fast")
    async def limited() -> None: ...

    with pytest.raises(ConfigurationError, match="fast"):
        client_of(database_url, migrated, machines=[limited]).open()
    with pytest.raises(ConfigurationError, match="pool_size"):
        client_of(database_url, migrated, pool_size=0)
    settings: dict[str, Any] = {
        "machines": [limited, plain], "rate_limits": {"fast": Rate(1, per=1)}, "queues": ["default", "other"],
        "schedules": [Schedule("hourly", "0 * * * *", plain.bind(n=1))],
    }  # fmt: skip
    with client_of(database_url, migrated, **settings) as client:
        assert [schedule.name for schedule in client.schedules()] == ["hourly"]
        assert [limit.name for limit in client.limits()] == ["fast"]
        client.insert(plain.bind(n=1), queue="other")
        with pytest.raises(InvalidArgument, match="no queue"):
            client.insert(plain.bind(n=1), queue="mistyped")


def test_an_unreachable_database_is_named_without_its_password(migrated: str) -> None:
    """Section 14: host, port, database, user."""
    client = SyncClient("postgresql://someone:secret@127.0.0.1:1/nowhere", schema=migrated)
    with pytest.raises(DatabaseUnreachable, match=r"127\.0\.0\.1, port 1, database nowhere, user someone") as raised:
        client.counts()
    assert "secret" not in str(raised.value)


def test_each_process_opens_connections_of_its_own_after_a_fork(database_url: str, migrated: str) -> None:
    """Section 9: a client that was used before works in both; the child leaves the parent's connections alone."""
    with client_of(database_url, migrated) as client:
        client.insert(plain.bind(n=1), key="parent")
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                client.insert(plain.bind(n=2), key="child")
                with pytest.raises(StillRunning):
                    client.result("child", 0.1)
                os.write(writing, b"well")
            finally:
                os._exit(0)
        os.close(writing)
        assert os.read(reading, 10) == b"well"
        os.waitpid(pid, 0)
        os.close(reading)
        assert {item.key for item in client.list().items} == {"parent", "child"}


def test_a_coroutine_that_would_wait_for_a_loop_is_a_defect() -> None:
    """The driver itself: it never leaves a call half done in silence."""

    class Never:
        def __await__(self) -> Iterator[None]:
            yield

    async def waits() -> None:
        await Never()

    with pytest.raises(RuntimeError, match="event loop"):
        finish(waits())

    async def fails_at_once() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        finish(fails_at_once())


async def test_a_cut_connection_is_replaced(build: Build, sql: Sql) -> None:
    """R27: the pool notices before it lends it again; a wait goes on."""
    async with build(plain, Waits) as engine:
        client = engine.sync_client()
        waits = await engine.insert(Waits())
        waiting = asyncio.create_task(asyncio.to_thread(client.result, waits.id, LONG))
        await eventually(lambda: hears(client))
        for _ in range(3):
            name = f"gen_durable {engine.settings.name}%"
            await sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE %s"
                " AND application_name NOT LIKE '%%control%%' AND pid <> pg_backend_pid()", name,
            )  # fmt: skip
            assert await asyncio.to_thread(insert_again, client)
        await eventually(lambda: signalled(engine, waits.id))
        assert await waiting == "still"
        await asyncio.to_thread(client.close)


async def hears(client: SyncClient) -> bool:
    return client._calls._ear.hears


def insert_again(client: SyncClient) -> int:
    """As a caller does who is told that the connection broke."""
    for _ in range(5):
        try:
            return client.insert(plain.bind(n=1)).id
        except DatabaseUnreachable:
            continue
    raise AssertionError("it never came back")


async def signalled(engine: Engine, id_: int) -> bool:
    try:
        return await engine.signal(id_, "go", "still", dedup_key="one") or True
    except DatabaseUnreachable:
        return False


# Steps that are plain functions -------------------------------------------------------------------


@job
def parent(ctx: Context, n: int) -> list[Any]:
    assert isinstance(ctx.client, SyncClient)
    # Reserved beyond its end, which may come at any time.
    handle = ctx.client.insert(plain.bind(n=n), key=f"child:{n}", scope=("live", "done"))
    with pytest.raises(DuplicateInstance):
        ctx.client.insert(plain.bind(n=n), key=f"child:{n}", scope=("live", "done"))
    return [handle.result(LONG), ctx.client.get(ctx.id).status]


class Mixed(Machine):
    kinds: list[str] = []

    @step
    def first(self, ctx: Context) -> Any:
        self.kinds.append(type(ctx.client).__name__)
        return Next(self.second)

    @step
    async def second(self, ctx: Context) -> Any:
        self.kinds.append(type(ctx.client).__name__)
        return Done(self.kinds)


class Plain(Job):
    def run(self, ctx: Context) -> int:
        handle: SyncHandle = ctx.client.insert(plain.bind(n=1))
        return handle.id


async def test_a_plain_step_has_a_client_that_blocks(build: Build) -> None:
    """Section 9: it is opened at its first call, shared by all threads, and closed with the engine."""
    async with build(parent, plain, Mixed, Plain) as engine:
        assert engine._threads_client is None or not engine._threads_client._is_open
        handles = [await engine.insert(parent.bind(n=n)) for n in range(10)]
        assert [await handle.result(LONG) for handle in handles] == [[n, "executing"] for n in range(10)]
        shared = engine._threads_client
        assert shared is not None
        assert (await ended(await engine.insert(Plain()))).status == "done"
        assert engine._threads_client is shared
        assert shared._is_open
    assert not shared._is_open


async def test_it_works_in_a_drain(durable_engine: Callable[..., Engine]) -> None:
    """Section 13: what a plain step inserts is drained too, in a queue or lane that was not known before."""

    @job
    def starts(ctx: Context) -> None:
        ctx.client.insert(plain.bind(n=1), queue="other")

    async with durable_engine(machines=[starts, plain], queues={"default": 1, "other": 1}).client() as engine:
        await engine.insert(starts.bind())
        assert len(engine._lanes) == 1
        assert (await testing.drain(engine)).outcomes["done"] == 2
        assert len(engine._lanes) == 2, "the drain looks there, not for a notification"
