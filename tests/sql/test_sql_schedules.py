"""R18: an occurrence is started once, whoever races for it, and the record of it outlives what it needs to."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import psycopg
import pytest
from sql_stage import Connection, Stage

from gen_durable._store import scheduling
from gen_durable._store.connection import fetch
from gen_durable._store.inserting import NewInstance
from gen_durable._store.operation import drive, drive_together
from gen_durable._store.scheduling import Due, Started, Turn
from gen_durable._times import Times, due

NAME = "hourly"
HOURLY = Times("0 * * * *", None, "UTC")
HOUR = timedelta(hours=1)
KEEP = 86_400.0


async def declare(
    stage: Stage, times: Times = HOURLY, *, name: str = NAME, on: Connection | None = None, **changes: Any
) -> bool:
    """Declares a schedule; answers whether anything was new."""
    given = {"state": b'{"n": 1}', "priority": 0, "catch_up": "all", "paused": False} | changes
    row = NewInstance(await stage.lane(), "one", msgspec.Raw(given["state"]), priority=given["priority"])
    operation = scheduling.declare(stage.sql, name, times, given["catch_up"], row, None, paused=given["paused"])
    return await drive(operation, partial(fetch, on or stage.main))


async def put_back(stage: Stage, hours: int = 1) -> None:
    """Makes it so late that so many occurrences have come."""
    moved = "UPDATE {schema}.schedules SET next_at = date_trunc('hour', {clock}) - make_interval(hours => %s)"
    await stage.ask(moved, hours - 1)


async def come(stage: Stage, on: Connection | None = None) -> list[Turn]:
    """What a worker finds to be started."""
    found: list[Due] = await drive(scheduling.due_schedules(stage.sql, 10), partial(fetch, on or stage.main))
    return [Turn(one, *due(one.times, one.anchor, one.next_at, one.now, "all", 100)) for one in found if one.wait <= 0]


async def start(stage: Stage, turns: list[Turn], on: Connection) -> tuple[int, list[Started]]:
    """A worker's transaction, committed."""
    return await drive_together(scheduling.start_due(stage.sql, turns), partial(fetch, on))


async def backfill(stage: Stage, chosen: list[datetime], on: Connection) -> int:
    operation = scheduling.backfill(stage.sql, NAME, lambda _: chosen, None)
    answer = await drive_together(operation, partial(fetch, on))
    assert answer is not None
    return answer[1]


async def started(stage: Stage) -> list[datetime]:
    """The times of the instances that are there, which must be those on record."""
    rows = await stage.ask("SELECT due_at, id FROM {schema}.instances ORDER BY 1, 2")
    assert rows == await stage.ask("SELECT occurrence, instance_id FROM {schema}.schedule_runs ORDER BY 1, 2")
    return [row[0] for row in rows]


# Two workers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("committed", [True, False])
async def test_of_two_workers_one_starts_what_has_come(stage: Stage, committed: bool) -> None:
    """R18: the second does not wait (its timers share the connection) and starts nothing; should the first not come to
    its end, the second starts it at its next look."""
    await declare(stage)
    await put_back(stage, 2)
    one, two = await stage.connect(), await stage.connect()
    turns = await come(stage)
    async with one.transaction(force_rollback=not committed):
        moved, first = await drive(scheduling.start_due(stage.sql, turns), partial(fetch, one))
        assert (moved, len(first)) == (1, 2)
        assert await start(stage, turns, two) == (0, [])
    again = await come(stage)
    assert bool(again) == (not committed)
    assert (await start(stage, again, two))[0] == len(again)
    assert len(await started(stage)) == 2
    assert await come(stage) == []


async def test_a_worker_that_computed_before_another_committed_starts_nothing(stage: Stage) -> None:
    """R18: next_at has moved on under it."""
    await declare(stage)
    await put_back(stage)
    turns = await come(stage)
    assert (await start(stage, turns, stage.main))[0] == 1
    assert await start(stage, turns, await stage.connect()) == (0, [])
    assert len(await started(stage)) == 1


async def test_a_worker_that_looks_while_another_commits_sees_what_it_has_moved(stage: Stage) -> None:
    """R18: its statement's snapshot is older than the other's commit; the row is looked at again under its lock."""
    await declare(stage)
    await put_back(stage)
    turns = await come(stage)
    gate, one, two = await stage.connect(), await stage.connect(), await stage.connect()
    async with gate.transaction():
        # Both wait at the table with their snapshots taken; then both run.
        await stage.ask("LOCK TABLE {schema}.schedules", on=gate)
        tasks = [asyncio.create_task(start(stage, turns, on)) for on in (one, two)]
        for task, on in zip(tasks, (one, two), strict=True):
            await stage.until_waiting(task, on)
    assert sorted([(await task)[0] for task in tasks]) == [0, 1]
    assert len(await started(stage)) == 1


@pytest.mark.parametrize("change", [{"state": b'{"n": 2}'}, {"times": Times("30 * * * *", None, "UTC")}])
async def test_times_computed_from_an_older_definition_start_nothing(stage: Stage, change: dict[str, Any]) -> None:
    """R18: also when the new definition has the same next time."""
    await declare(stage)
    await put_back(stage)
    turns = await come(stage)
    assert await declare(stage, **change)
    await stage.ask("UPDATE {schema}.schedules SET next_at = %s", turns[0].schedule.next_at)
    assert await start(stage, turns, stage.main) == (0, [])
    ((turn,),) = [await come(stage)]
    assert turn.schedule.rev == turns[0].schedule.rev + 1


async def test_a_pause_between_look_and_start_is_heeded(stage: Stage) -> None:
    """R18: who is told that a schedule is paused sees nothing start any more; a start under way is waited for."""
    await declare(stage)
    await put_back(stage)
    turns = await come(stage)
    worker, pauser = await stage.connect(), await stage.connect()
    async with worker.transaction(force_rollback=True):
        await drive(scheduling.start_due(stage.sql, turns), partial(fetch, worker))
        task = asyncio.create_task(stage.run("schedules/pause", on=pauser, name=NAME))
        await stage.until_waiting(task, pauser)
    assert len(await task) == 1
    assert await start(stage, turns, worker) == (0, [])
    assert await started(stage) == []


async def test_many_schedules_are_moved_in_one_transaction_past_one_that_is_held(stage: Stage) -> None:
    for n in range(3):
        await declare(stage, name=f"s{n}")
    await put_back(stage)
    turns = await come(stage)
    assert len(turns) == 3
    holder = await stage.connect()
    async with holder.transaction():
        await stage.run("schedules/hold", on=holder, name="s1")
        moved, found = await start(stage, turns, stage.main)
        assert moved == 2
        assert sorted(one.name for one in found) == ["s0", "s2"]
    assert [turn.schedule.name for turn in await come(stage)] == ["s1"]


# A worker and a backfill ----------------------------------------------------------------------------


@pytest.mark.parametrize("committed", [True, False])
async def test_a_backfill_waits_for_a_worker_that_starts_the_same(stage: Stage, committed: bool) -> None:
    """R18: it starts what the worker has not; nothing, when the worker commits."""
    await declare(stage)
    await put_back(stage, 2)
    turns = await come(stage)
    worker, filler = await stage.connect(), await stage.connect()
    async with worker.transaction(force_rollback=not committed):
        await drive(scheduling.start_due(stage.sql, turns), partial(fetch, worker))
        task = asyncio.create_task(backfill(stage, list(turns[0].occurrences), filler))
        await stage.until_waiting(task, filler)
    assert await task == (0 if committed else 2)
    assert await started(stage) == list(turns[0].occurrences)


@pytest.mark.parametrize("committed", [True, False])
async def test_a_worker_passes_by_a_schedule_that_is_being_backfilled(stage: Stage, committed: bool) -> None:
    """R18: afterwards it starts only what the backfill has not."""
    await declare(stage)
    await put_back(stage, 2)
    turns = await come(stage)
    first = turns[0].occurrences[0]
    filler = await stage.connect()
    async with filler.transaction(force_rollback=not committed):
        operation = scheduling.backfill(stage.sql, NAME, lambda _: [first], None)
        await drive(operation, partial(fetch, filler))
        assert await start(stage, turns, stage.main) == (0, [])
    moved, found = await start(stage, turns, stage.main)
    assert (moved, len(found)) == (1, 1 if committed else 2)
    assert await started(stage) == list(turns[0].occurrences)


async def test_two_backfills_start_each_occurrence_once(stage: Stage) -> None:
    """R18: the second waits, and sees what the first has started."""
    await declare(stage)
    await put_back(stage, 3)
    chosen = list((await come(stage))[0].occurrences)
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction():
        operation = scheduling.backfill(stage.sql, NAME, lambda _: chosen[:2], None)
        await drive(operation, partial(fetch, one))
        task = asyncio.create_task(backfill(stage, chosen, two))
        await stage.until_waiting(task, two)
    assert await task == 1
    assert await started(stage) == chosen


async def test_the_record_refuses_an_occurrence_twice(stage: Stage) -> None:
    """R18: the last guard, should a lock ever be forgotten: the primary key undoes the whole transaction."""
    await declare(stage)
    await put_back(stage)
    turns = await come(stage)
    await start(stage, turns, stage.main)
    id_, at = turns[0].schedule.id, turns[0].occurrences[0]
    with pytest.raises(psycopg.errors.UniqueViolation):
        await stage.run("schedules/record", schedules=[id_], occurrences=[at], instances=[99])


# Declaring ------------------------------------------------------------------------------------------


async def one_row(stage: Stage, columns: str) -> Any:
    return (await stage.ask(f"SELECT {columns} FROM {{schema}}.schedules"))[0]


async def test_the_same_again_touches_nothing(stage: Stage, ear: Connection) -> None:
    """R18: neither next_at nor the pause nor the definition's number; JSON that only looks different is the same."""
    assert await declare(stage, paused=True)
    await put_back(stage, 3)
    assert await stage.heard(ear) == ["s:"]
    before = await stage.ask("SELECT s::text FROM {schema}.schedules s")
    assert not await declare(stage, state=b'{ "n":1 }')
    assert await stage.ask("SELECT s::text FROM {schema}.schedules s") == before
    assert await stage.heard(ear) == []


@pytest.mark.parametrize("change", [{"state": b'{"n": true}'}, {"priority": 5}, {"catch_up": "none"}])
async def test_another_template_keeps_the_times(stage: Stage, change: dict[str, Any]) -> None:
    """What has come is started as the new definition says."""
    await declare(stage)
    await put_back(stage, 3)
    before = await one_row(stage, "next_at, anchor, paused_at, rev")
    assert await declare(stage, **change)
    assert await one_row(stage, "next_at, anchor, paused_at, rev - 1") == before


@pytest.mark.parametrize(
    "times",
    [
        Times("30 * * * *", None, "UTC"),
        Times("0 * * * *", None, "Asia/Kolkata"),
        Times(None, timedelta(hours=1), "UTC"),
    ],
)
async def test_other_times_count_from_now(stage: Stage, times: Times) -> None:
    await declare(stage)
    await put_back(stage, 3)
    assert await declare(stage, times)
    ahead = "next_at > {clock} AND next_at <= {clock} + interval '1 hour' AND anchor <= {clock}"
    assert await one_row(stage, ahead) == (True,)
    if times.every:
        assert await one_row(stage, "next_at - anchor") == (times.every,)


async def test_two_processes_that_declare_the_same_make_one(stage: Stage, ear: Connection) -> None:
    """The second waits for the first, then finds nothing to change; workers hear of it once."""
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction():
        assert await declare(stage, on=one)
        task = asyncio.create_task(declare(stage, on=two))
        await stage.until_waiting(task, two)
    assert await task is False
    assert await one_row(stage, "count(*), max(rev)") == (1, 0)
    assert await stage.heard(ear) == ["s:"]


async def test_resuming_what_is_not_paused_drops_nothing_that_has_come(stage: Stage) -> None:
    """R18: only the occurrences of a pause are left out."""
    await declare(stage)
    await put_back(stage, 3)
    before = await one_row(stage, "next_at")
    assert await drive_together(scheduling.resume(stage.sql, NAME), partial(fetch, stage.main))
    assert await one_row(stage, "next_at") == before
    await stage.run("schedules/pause", name=NAME)
    assert await come(stage) == []
    assert await drive_together(scheduling.resume(stage.sql, NAME), partial(fetch, stage.main))
    assert await one_row(stage, "next_at > {clock}, paused_at") == (True, None)


# Forgetting -----------------------------------------------------------------------------------------


async def forget(stage: Stage, batch: int = 100) -> int:
    rows = await stage.run("pruning/runs", keep=KEEP, batch=batch)
    return int(rows[0][0])


async def age(stage: Stage, seconds: float) -> None:
    await stage.ask("UPDATE {schema}.schedule_runs SET started_at = started_at - make_interval(secs => %s)", seconds)


async def test_what_is_forgotten_is_noted(stage: Stage) -> None:
    """R18: the span in which the record is gone grows with each batch, so that no backfill starts anything again."""
    await declare(stage)
    await put_back(stage, 5)
    (turn,) = await come(stage)
    await start(stage, [turn], stage.main)
    await age(stage, KEEP - 60)
    assert await forget(stage) == 0
    await age(stage, 120)
    first, *_, last = turn.occurrences
    assert await forget(stage, batch=2) == 2
    assert await forget(stage, batch=2) == 2
    assert await forget(stage, batch=2) == 1
    assert await forget(stage) == 0
    assert await one_row(stage, "lower(forgotten), upper(forgotten), upper_inc(forgotten)") == (first, last, True)


async def test_forgetting_passes_by_a_schedule_that_is_being_started(stage: Stage) -> None:
    await declare(stage)
    await put_back(stage, 2)
    await start(stage, await come(stage), stage.main)
    await age(stage, 2 * KEEP)
    holder = await stage.connect()
    async with holder.transaction():
        await stage.run("schedules/hold", on=holder, name=NAME)
        assert await forget(stage) == 0
    assert await forget(stage) == 2


async def test_what_is_left_of_a_schedule_that_is_gone_is_deleted(stage: Stage) -> None:
    """And a new one of the same name has a record of its own."""
    for name in ("a", NAME, "z"):
        await declare(stage, name=name)
    await put_back(stage, 3)
    await start(stage, await come(stage), stage.main)
    assert await stage.run("schedules/remove", name=NAME) != []
    assert await stage.run("schedules/remove", name=NAME) == []
    await declare(stage)
    assert [await forget(stage, batch=2) for _ in range(3)] == [2, 1, 0]
    left = "SELECT s.name, count(*) FROM {schema}.schedule_runs r JOIN {schema}.schedules s ON s.id = r.schedule"
    assert await stage.ask(left + " GROUP BY 1 ORDER BY 1") == [("a", 3), ("z", 3)]
