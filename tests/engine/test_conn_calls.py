"""Every other write call in the caller's transaction."""

from __future__ import annotations

import asyncio
import inspect
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from conn_kinds import KINDS, Call, Caller, elsewhere, lend
from engine_support import LONG, Build, Sql, eventually

from gen_durable import Await, Context, Done, Engine, Machine, Rate, Spawn, SyncClient, job, step, testing
from gen_durable.client.handle import Handle, SyncHandle
from gen_durable.errors import InstanceCancelled

SOME = [
    "psycopg async spoilt", "psycopg spoilt", "psycopg2", "asyncpg", "sqlalchemy psycopg session",
    "sqlalchemy psycopg async session", "sqlalchemy asyncpg async session", "django", "django naive",
]  # fmt: skip

READS = {"get", "list", "history", "why", "counts", "queues", "workers", "schedules", "limits", "result"}
OTHERS = {"client", "sync_client", "migrate", "database_url", "on", "run", "settings", "stop"}


@job
async def plain(n: int) -> int:
    return n


@job(queue="timed")
async def timed(at: datetime | None = None) -> str:
    return str(at)


class Family(Machine):
    @step
    async def start(self, ctx: Context) -> Spawn:
        return Spawn([Waits(), Waits()], then=self.end)

    @step
    async def end(self, ctx: Context) -> Done:
        return Done([child.status for child in ctx.children])


class Waits(Machine):
    @step
    async def start(self, ctx: Context) -> Await:
        return Await("go", then=self.end)

    @step
    async def end(self, ctx: Context) -> Done:
        return Done(ctx.awaited[0].payload)


@pytest.fixture(params=SOME)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_write_call_takes_a_connection() -> None:
    """R20: every call but those that read; a backfill commits in parts, and says so."""
    calls = {name: getattr(Engine, name) for name in names_of(Engine) - OTHERS}
    writing = set(calls) - READS
    without = {name for name in writing if "conn" not in inspect.signature(calls[name]).parameters}
    assert without == {"backfill_schedule"}
    assert "``conn``" in (Engine.backfill_schedule.__doc__ or "")
    for name in writing - {"backfill_schedule"}:
        conn = inspect.signature(calls[name]).parameters["conn"]
        assert (conn.kind, conn.default) == (inspect.Parameter.KEYWORD_ONLY, None)
        assert "conn" in (calls[name].__doc__ or ""), name
    for handle in (Handle, SyncHandle):
        for name in ("signal", "cancel"):
            assert "conn" in inspect.signature(getattr(handle, name)).parameters


async def state_of(sql: Sql) -> Any:
    """What the calls below change."""
    statuses = await sql("SELECT key, status FROM {s}.all_instances WHERE key IS NOT NULL ORDER BY key")
    counts = await sql("SELECT count(*) FROM {s}.all_instances WHERE key IS NULL")
    queues = await sql("SELECT name FROM {s}.queues WHERE paused")
    schedules = await sql("SELECT name, paused_at IS NULL, next_at, state::text FROM {s}.schedules ORDER BY name")
    limits = await sql("SELECT kind, name, amount, per, burst FROM {s}.limits ORDER BY kind, name")
    return dict(statuses), counts[0][0], [name for (name,) in queues], schedules, limits


async def change(call: Call, conn: Any) -> None:
    assert await call("cancel", "live", conn=conn) is True
    assert await call("cancel", "live", conn=conn) is False
    await call("retry", "failed", conn=conn)
    await call("schedule", "new", "0 9 * * *", timed.bind(), tz="Asia/Tokyo", time_field="at", conn=conn)
    await call("schedule", "every", None, plain.bind(n=1), every=timedelta(hours=1), conn=conn)
    assert await call("unschedule", "old", conn=conn) is True
    await call("pause_schedule", "running", conn=conn)
    await call("resume_schedule", "paused", conn=conn)
    await call("trigger_schedule", "running", conn=conn)
    assert await call("set_limit", "account", 3, conn=conn) is True
    assert await call("set_limit", "gone", None, conn=conn) is True
    assert await call("set_limit", "fast", Rate(5, per=2.5, burst=7), conn=conn) is True
    assert await call("set_limit", "timed", 9, queue=True, conn=conn) is True
    handle = await call("signal_or_insert", plain.bind(n=4), key="both", name="go", payload=[1], conn=conn)
    again = await call("signal_or_insert", plain.bind(n=4), key="both", name="go", payload=[2], conn=conn)
    assert again.id == handle.id
    replaced = await call("insert", plain.bind(n=9), key="waiting", on_conflict="replace", delay=60, conn=conn)
    assert (replaced.key, replaced.machine) == ("waiting", "plain")
    await call("insert", plain.bind(n=9), key="capped", concurrency_key="account", conn=conn)
    await call("pause_queue", "default", conn=conn)
    await call("pause_queue", "timed", conn=conn)
    await call("resume_queue", "timed", conn=conn)


async def test_they_take_effect_at_the_commit_or_never(kind: str, database_url: str, build: Build, sql: Sql) -> None:
    """R20: all of them, with each driver; what a rollback undoes has changed nothing."""
    loop = asyncio.get_running_loop()

    async def work(caller: Caller, call: Call) -> None:
        before = await elsewhere(caller, loop, state_of(sql))
        await caller.begin()
        await change(call, caller.conn)
        assert await elsewhere(caller, loop, state_of(sql)) == before
        await caller.rollback()
        assert await elsewhere(caller, loop, state_of(sql)) == before
        await caller.begin()
        await change(call, caller.conn)
        await caller.commit()

    async with build(plain, timed, queues={}, rate_limits={"fast": Rate(1, per=1)}).client() as engine:
        await engine.insert(plain.bind(n=1), key="live")
        await engine.insert(plain.bind(n=1), key="failed")
        await engine.cancel("failed")
        await engine.insert(plain.bind(n=1), key="waiting")
        await engine.insert(timed.bind())
        for name in ("old", "running", "paused"):
            await engine.schedule(name, "0 12 * * *", plain.bind(n=1), paused=name == "paused")
        await engine.set_limit("gone", 5)
        await lend(kind, database_url, engine, work)
        keys, keyless, paused, schedules, limits = await state_of(sql)
        assert keys == {"both": 0, "capped": 5, "failed": 0, "live": 8, "waiting": 1}
        assert keyless == 2
        assert paused == ["default"]
        assert [(name, runs) for name, runs, _, _ in schedules] == [
            ("every", True), ("new", True), ("paused", True), ("running", False),
        ]  # fmt: skip
        at = next(next_at for name, _, next_at, _ in schedules if name == "new")
        assert (at.astimezone(UTC).hour, at.minute) == (0, 0)
        every = next(next_at for name, _, next_at, _ in schedules if name == "every")
        assert timedelta(minutes=59) < every - datetime.now(UTC) < timedelta(minutes=61)
        assert limits == [
            ("concurrency", "account", 3, None, None), ("concurrency", "gone", None, None, None),
            ("queue", "timed", 9, None, None), ("rate", "fast", 5, 2.5, 7),
        ]  # fmt: skip


async def test_a_cancel_reaches_the_running_step_at_the_commit(database_url: str, build: Build) -> None:
    """R20, section 12: a cascade too; until the commit the steps run on, then they are told by notification."""
    started, ended = asyncio.Event(), asyncio.Event()

    @job
    async def runs() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with build(runs, Family, Waits, poll_interval=60) as engine:
        handle = await engine.insert(runs.bind())
        family = await engine.insert(Family())
        await started.wait()
        await eventually(lambda: has_children(engine, family))
        async with KINDS["psycopg async"](database_url) as caller:
            await handle.cancel(reason="enough", conn=caller.conn)
            await engine.cancel(family.id, cascade=True, conn=caller.conn)
            assert await (await engine.insert(Waits())).signal("go", 1)
            assert not ended.is_set()
            await caller.commit()
        await asyncio.wait_for(ended.wait(), LONG)
        with pytest.raises(InstanceCancelled, match="enough"):
            await handle.result(LONG)
        page = await engine.list(machine="Waits", status="cancelled")
        assert len(page.items) == 2


async def has_children(engine: Engine, family: Handle) -> bool:
    return (await family.get()).status == "awaiting_children"


async def test_a_raised_limit_lets_go_at_the_commit(database_url: str, build: Build, sql: Sql) -> None:
    """R20, R22: what waits for it is looked at when the change commits; also what has come since it was made, and was
    looked at under the old limit."""
    release = asyncio.Event()

    @job(concurrency_key="one")
    async def holds(n: int) -> int:
        await release.wait()
        return n

    async def looked_at() -> bool:
        return await sql("SELECT count(*) FROM {s}.knocks") == [(0,)]

    async with build(holds, poll_interval=60) as engine:
        handles = [await engine.insert(holds.bind(n=0))]
        await eventually(lambda: statuses_are(handles, "executing"))
        async with KINDS["asyncpg"](database_url) as caller:
            await caller.begin()
            await engine.set_limit("one", 3, conn=caller.conn)
            handles += [await engine.insert(holds.bind(n=n)) for n in (1, 2)]
            await eventually(looked_at)
            assert await statuses_are(handles, "executing", "blocked", "blocked")
            await caller.commit()
        await eventually(lambda: statuses_are(handles, "executing", "executing", "executing"))
        release.set()
        assert [await handle.result(LONG) for handle in handles] == [0, 1, 2]


async def statuses_are(handles: list[Handle], *statuses: str) -> bool:
    return [(await handle.get()).status for handle in handles] == list(statuses)


async def test_the_clock_of_tests_decides_there_too(durable_engine: Any, database_url: str) -> None:
    """ADR 14: delays of what is inserted in the caller's transaction go by the schema's clock, async and blocking."""
    async with durable_engine(machines=[plain]).client() as engine:
        await testing.advance(engine, 3600)
        async with await psycopg.AsyncConnection.connect(database_url) as conn:
            later = await engine.insert(plain.bind(n=1), delay=60, conn=conn)
        now = await testing.clock(engine)
        due = (await later.get()).due_at
        assert due is not None
        assert abs((due - now).total_seconds() - 60) < 30

        def blocking() -> int:
            with engine.sync_client() as client, psycopg.connect(database_url) as conn:
                return client.insert(plain.bind(n=2), delay=60, conn=conn).id

        due = (await engine.get(await asyncio.to_thread(blocking))).due_at
        assert due is not None
        assert abs((due - now).total_seconds() - 60) < 30
        assert (await testing.drain(engine)).outcomes["done"] == 2


def test_the_blocking_client_has_the_same_calls_with_the_same_signatures() -> None:
    """R20, section 9: parameter by parameter, conn= included; and what they answer with, handles apart."""
    ours = {name for name in names_of(Engine) if name not in OTHERS}
    theirs = {name for name in names_of(SyncClient) if name not in {"open", "close", "migrate"}}
    assert ours == theirs
    for name in sorted(ours):
        one, other = inspect.signature(getattr(Engine, name)), inspect.signature(getattr(SyncClient, name))
        assert one.parameters == other.parameters, name
        answer = str(one.return_annotation)
        assert other.return_annotation == answer.replace("Handle", "SyncHandle").replace("Inserted", "SyncInserted"), (
            name
        )
    assert methods(Handle) == methods(SyncHandle)
    for name in methods(Handle):
        one, other = inspect.signature(getattr(Handle, name)), inspect.signature(getattr(SyncHandle, name))
        assert one == other, name


def names_of(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind, callable) if not name.startswith("_")}


def methods(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_") and callable(getattr(kind, name))}
