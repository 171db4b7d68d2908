"""Section 11, retention: terminal rows and their history go after their time, and not before."""

from __future__ import annotations

import contextlib
import math
from datetime import date, timedelta
from typing import Any

import pytest
from engine_support import Build, Sql, ended, eventually

from gen_durable import Context, Done, Engine, Handle, Machine, Next, job, step
from gen_durable.errors import NoSuchInstance


@job
async def noop(n: int = 0) -> int:
    return n


@job(retention=timedelta(hours=1))
async def hour() -> None: ...


@job(retention=math.inf)
async def forever() -> None: ...


class Eternal(Machine, retention=math.inf):
    @step
    async def one(self, ctx: Context) -> Next:
        return Next(self.two)

    @step
    async def two(self, ctx: Context) -> Done:
        return Done()


@job(retention=0)
async def gone() -> None: ...


@job(retention=40 * 86_400)
async def long() -> None: ...


class Fails(Machine, retention=0.2):
    @step
    async def one(self, ctx: Context) -> Next:
        return Next(self.two)

    @step
    async def two(self, ctx: Context) -> Done:
        raise OSError


async def _swept(build: Build, sql: Sql, left: int) -> None:
    """A worker starts, which sweeps first of all; until so many terminal rows are left."""
    async with build(noop):

        async def there() -> bool:
            return (await sql("SELECT count(*) FROM {s}.finished"))[0][0] == left

        await eventually(there)


async def test_each_row_knows_when_it_goes(build: Build, sql: Sql) -> None:
    """Retention of the engine, or of the machine where it says otherwise; for ever is for ever."""
    async with build(noop, hour, forever, gone, long, retention=7200) as engine:
        handles = {
            name: await engine.insert(made.bind())
            for name, made in {"noop": noop, "hour": hour, "forever": forever, "gone": gone, "long": long}.items()
        }
        for handle in handles.values():
            await handle.result(timeout=10)
    rows: list[Any] = await sql(
        "SELECT id, extract(epoch FROM CASE WHEN expires_at = 'infinity' THEN NULL ELSE expires_at - finished_at END) "
        "FROM {s}.finished"
    )
    kept = {id_: None if seconds is None else float(seconds) for id_, seconds in rows}
    wanted = {"noop": 7200.0, "hour": 3600.0, "forever": None, "gone": 0.0, "long": 40 * 86_400.0}
    assert {name: kept[handle.id] for name, handle in handles.items() if handle.id in kept} | {"gone": 0.0} == wanted


async def test_expired_rows_go_with_their_history_and_others_stay(build: Build, sql: Sql) -> None:
    """What has expired is swept with its history; not a second earlier, and never a live row."""
    async with build(Fails, noop, hour) as engine:
        lost = [await engine.insert(Fails(), key="the key") for _ in range(1)]
        stays = await engine.insert(hour.bind())
        live = await engine.insert(noop.bind(), delay=3600)
        for handle in (*lost, stays):
            await ended(handle)
        await sql("UPDATE {s}.finished SET expires_at = finished_at + interval '1 h' WHERE key = 'the key'")
    await _swept(build, sql, 2)
    await sql("UPDATE {s}.finished SET expires_at = now() - interval '1 ms' WHERE key = 'the key'")
    await _swept(build, sql, 1)
    async with build(noop, hour, queues={}) as web:
        for target in (lost[0].id, "the key"):
            with pytest.raises(NoSuchInstance, match="its retention has passed"):
                await web.get(target)
        assert (await web.get(stays.id)).status == "done"
        assert len(await web.history(stays.id)) == 1
        assert (await web.get(live.id)).status == "runnable"
    assert await sql("SELECT count(*) FROM {s}.transitions WHERE instance_id = %s", lost[0].id) == [(0,)]


async def test_a_retention_of_nothing_lets_the_result_be_fetched_here(build: Build) -> None:
    """Retention 0: the row ends and may go at once; it does no harm to the engine that waits for it."""
    async with build(gone, noop) as engine:
        handle = await engine.insert(gone.bind())
        with contextlib.suppress(NoSuchInstance):
            assert await handle.result(timeout=10) is None
        assert await (await engine.insert(noop.bind(n=3))).result(timeout=10) == 3


async def test_a_big_pile_of_expired_rows_goes_in_batches(build: Build, sql: Sql) -> None:
    """Thousands that have expired go in bounded batches, one after the other, while the worker works."""
    await sql(
        "INSERT INTO {s}.lanes (queue, machine, version) VALUES ('default', 'old', 1)",
    )
    await sql(
        "INSERT INTO {s}.finished (id, rev, inserted_at, finished_at, expires_at, bucket, lane, attempt, crashes, "
        "status, priority, step, state) SELECT n, 1, now(), now(), now() - interval '1 s' * n, 'infinity', l.id, "
        "0, 0, 6, 0, 'run', '{}' FROM generate_series(10001, 13500) n, {s}.lanes l",
    )
    async with build(noop, retention=3600) as engine:
        assert await (await engine.insert(noop.bind(n=1))).result(timeout=10) == 1

        async def empty() -> bool:
            return (await sql("SELECT count(*) FROM {s}.finished"))[0][0] == 1

        await eventually(empty)


async def _partitions(sql: Sql, parent: str) -> set[str]:
    rows = await sql(
        "SELECT c.relname FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid "
        "WHERE h.inhparent = ('{s}.' || %s)::regclass",
        parent,
    )
    return {row[0] for row in rows}


async def _move_to(sql: Sql, handle: Handle, day: date) -> None:
    """As if it had ended so that it expired on that day."""
    for parent in ("finished", "transitions"):
        await sql(
            f"CREATE TABLE IF NOT EXISTS {{s}}.{parent}_{day:%Y%m%d} PARTITION OF {{s}}.{parent} "
            f"FOR VALUES FROM ('{day}') TO ('{day + timedelta(days=1)}')"
        )
    await sql(
        f"UPDATE {{s}}.finished SET bucket = '{day}', expires_at = '{day} 12:00+00', inserted_at = '{day} 10:00+00' "
        "WHERE id = %s",
        handle.id,
    )
    await sql(f"UPDATE {{s}}.transitions SET at = '{day} 11:00+00' WHERE instance_id = %s", handle.id)


async def test_a_day_of_expired_rows_is_dropped_whole_and_no_other(build: Build, sql: Sql) -> None:
    """Rows kept for days live in a partition of their day of expiry, which is dropped the day after: not before."""
    today = (await sql("SELECT (now() AT TIME ZONE 'UTC')::date"))[0][0]
    old = date(2020, 1, 1)

    async def run(engine: Engine, made: Any) -> Handle:
        handle = await engine.insert(made)
        await handle.result(timeout=10)
        return handle

    async with build(noop, Eternal) as engine:
        eternal = await run(engine, Eternal())
        passed, expires_today, fresh = [await run(engine, noop.bind()) for _ in range(3)]
        sleeper = await engine.insert(noop.bind(), delay=10**7)
    await _move_to(sql, passed, old)
    await _move_to(sql, eternal, old)  # its history only: it is kept for ever itself
    await sql("UPDATE {s}.finished SET bucket = 'infinity', expires_at = 'infinity' WHERE id = %s", eternal.id)
    await _move_to(sql, expires_today, today)
    assert f"finished_{old:%Y%m%d}" in await _partitions(sql, "finished")

    for parent in ("finished", "transitions"):  # one pass drops, the next saves what is still needed, and drops

        async def dropped(parent: str = parent) -> bool:
            return f"{parent}_{old:%Y%m%d}" not in await _partitions(sql, parent)

        async with build(noop):
            await eventually(dropped)
    async with build(noop, queues={}) as engine:
        with pytest.raises(NoSuchInstance):
            await engine.get(passed.id)
        for handle in (expires_today, fresh, eternal):
            assert (await engine.get(handle.id)).status == "done"
            outcomes = ["next", "done"] if handle is eternal else ["done"]
            assert [t.outcome for t in await engine.history(handle.id)] == outcomes
        assert (await engine.get(sleeper.id)).status == "runnable"
    assert await sql("SELECT count(*) FROM {s}.transitions_kept WHERE instance_id = %s", passed.id) == [(0,)]
