"""Races, stepped by hand: who waits for whom is seen in pg_stat_activity, never guessed with a pause."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import psycopg
import pytest
from sql_stage import Connection, Stage, encode, outcome

from gen_durable._runtime.flusher import locked_first
from gen_durable._runtime.record import ON, Record
from gen_durable._store.connection import fetch
from gen_durable._store.inserting import NewInstance, Placed, insert_all
from gen_durable._store.migrating import check_version, migrate, migrations
from gen_durable._store.operation import drive

QUICK = 0.003  # a lease so short that the server counts as long started


async def test_two_claims_of_the_same_rows_share_them(stage: Stage) -> None:
    """R4: neither waits, none gets what the other has; what is rolled back is there again."""
    lane = await stage.lane()
    placed = await stage.insert(*[{"lane": lane}] * 4)
    await stage.register(8)
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction(force_rollback=True):
        first = await stage.claim((lane, 0, 3), worker=7, on=one)
        second = await stage.claim((lane, 0, 3), worker=8, on=two)
        assert [row[0] for row in first + second] == placed
    third = await stage.claim((lane, 0, 9), worker=8, on=two)
    assert [row[0] for row in third] == placed[:3]


async def test_a_claim_that_commits_while_another_looks_is_seen(stage: Stage) -> None:
    """R4: the snapshot may be older than the other's commit; the row is looked at again under its lock."""
    lane = await stage.lane()
    (id_, after) = await stage.insert(*[{"lane": lane}] * 2)
    await stage.register(8)
    gate, one, two = await stage.connect(), await stage.connect(), await stage.connect()
    async with gate.transaction():
        # Both wait at the lanes' table, with their snapshots taken; then both run.
        await stage.ask("LOCK TABLE {schema}.lanes", on=gate)
        tasks = [
            asyncio.create_task(stage.claim((lane, 0, 1), worker=worker, on=on)) for worker, on in [(7, one), (8, two)]
        ]
        for task, on in zip(tasks, [one, two], strict=True):
            await stage.until_waiting(task, on)
    claims = [await task for task in tasks]
    assert sorted(row[0] for rows in claims for row in rows) == [id_, after]


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("lost", [True, False])
async def test_a_commit_waits_for_the_reaper_and_then_is_refused(stage: Stage, kind: int, lost: bool) -> None:
    """R4: also when the reaper's transaction is rolled back, the commit goes on as if nothing had been."""
    id_, rev, _ = await stage.held()
    await stage.register(7, seen=60)
    reaper, worker = await stage.connect(), await stage.connect()
    async with reaper.transaction(force_rollback=not lost):
        assert await stage.reap(lease=QUICK, on=reaper) == (1, [7])
        task = asyncio.create_task(stage.commit(outcome(id_, rev, kind), on=worker))
        await stage.until_waiting(task, worker)
    assert await task == ([] if lost else [id_])
    if lost:
        assert await stage.row(id_, "status, attempt, rev") == (0, 1, rev + 1)
        assert await stage.ask("SELECT FROM {schema}.finished") == []
        assert [row[1] for row in await stage.history(id_)] == [6]


@pytest.mark.parametrize("kind", [0, 1, 2])
async def test_the_reaper_passes_by_what_is_being_committed(stage: Stage, kind: int) -> None:
    """R3: it does not wait, and finds what is left of the claim at its next pass."""
    id_, rev, _ = await stage.held()
    await stage.register(7, seen=60)
    worker = await stage.connect()
    async with worker.transaction():
        assert await stage.commit(outcome(id_, rev, kind), on=worker) == [id_]
        assert await stage.reap(lease=QUICK) == (0, [7])
    assert await stage.reap(lease=QUICK) == (1 if kind == 0 else 0, [])
    if kind == 0:
        assert await stage.row(id_, "status, step, attempt") == (0, "two", 1)


async def test_a_heartbeat_that_commits_first_saves_the_worker(stage: Stage) -> None:
    """R25"""
    id_, _, _ = await stage.held()
    await stage.register(7, seen=60)
    worker, reaper = await stage.connect(), await stage.connect()
    async with worker.transaction():
        assert len(await stage.run("workers/heartbeat", on=worker, worker=7, locked=False, lanes=[])) == 1
        task = asyncio.create_task(stage.reap(lease=QUICK, on=reaper))
        await stage.until_waiting(task, reaper)
    assert await task == (0, [])
    assert await stage.row(id_, "status, worker") == (2, 7)


async def test_a_reaper_that_commits_first_tells_the_worker(stage: Stage) -> None:
    """R25"""
    await stage.held()
    await stage.register(7, seen=60)
    worker, reaper = await stage.connect(), await stage.connect()
    async with reaper.transaction():
        assert await stage.reap(lease=QUICK, on=reaper) == (1, [7])
        task = asyncio.create_task(stage.run("workers/heartbeat", on=worker, worker=7, locked=False, lanes=[]))
        await stage.until_waiting(task, worker)
    assert await task == []


@pytest.mark.parametrize("committed", [True, False])
async def test_an_insert_waits_for_another_one_of_its_key(stage: Stage, committed: bool) -> None:
    """R16: whoever races; when the first is rolled back, the second has the key."""
    lane = await stage.lane()
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction(force_rollback=not committed):
        (first,) = await stage.insert({"lane": lane, "key": "k"}, on=one)
        task = asyncio.create_task(stage.insert({"lane": lane, "key": "k"}, on=two))
        await stage.until_waiting(task, two)
    (second,) = await task
    assert (second is None) is committed
    assert await stage.run("inserting/holders", keys='["k"]') == [("k", first if committed else second, 0)]


async def test_an_insert_waits_for_the_end_of_the_keys_holder(stage: Stage) -> None:
    """R16: the commit that ends the holder frees the key for an insert that is under way."""
    lane = await stage.lane()
    await stage.insert({"lane": lane, "key": "k"})
    ((id_, rev, *_),) = await stage.claim((lane, 0, 1))
    worker, client = await stage.connect(), await stage.connect()
    async with worker.transaction():
        await stage.commit(outcome(id_, rev, 2), on=worker)
        task = asyncio.create_task(stage.insert({"lane": lane, "key": "k"}, on=client))
        await stage.until_waiting(task, client)
    (fresh,) = await task
    assert fresh is not None


async def test_the_same_keys_in_opposite_orders_never_deadlock(stage: Stage) -> None:
    """R16: over several statements of one transaction too, because a call sorts all its keys."""
    lane = await stage.lane()
    state = msgspec.Raw(b'"' + b"x" * 1000 + b'"')
    keys = [f"k{n:05}" for n in range(4500)]  # more than two statements' worth
    one, two = await stage.connect(), await stage.connect()

    first, further = asyncio.Event(), asyncio.Event()

    async def go(names: list[str], on: Connection, *, stepped: bool) -> list[Placed]:
        async def send(request: Any) -> Any:
            rows = await fetch(on, request)
            if stepped and request.statement.name == "inserting/insert":
                first.set()
                await further.wait()
            return rows

        async with on.transaction():
            rows = [NewInstance(lane, "s", state, key) for key in names]
            return (await drive(insert_all(stage.sql, rows, together=True), send)).placed

    forward = asyncio.create_task(go(keys, one, stepped=True))
    await first.wait()
    other = asyncio.create_task(go(keys[::-1], two, stepped=False))
    await stage.until_waiting(other, two)  # at its very first key: it holds none that the other still needs
    further.set()
    placed, backward = await forward, await other
    assert [place.id for place in placed] == [place.id for place in backward[::-1]]
    duplicates = [place.duplicate for place in placed + backward]
    assert sum(duplicates) == len(keys)
    assert await stage.value("SELECT count(*) FROM {schema}.instances") == len(keys)


async def test_unsorted_statements_do_deadlock(stage: Stage) -> None:
    """Why the call sorts: the same two statements by hand, in opposite orders, are stopped by the server."""
    lane = await stage.lane()
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction(force_rollback=True):
        await stage.insert({"lane": lane, "key": "a"}, on=one)
        async with two.transaction(force_rollback=True):
            await stage.insert({"lane": lane, "key": "b"}, on=two)
            task = asyncio.create_task(stage.insert({"lane": lane, "key": "b"}, on=one))
            await stage.until_waiting(task, one)
            results = await asyncio.gather(
                stage.insert({"lane": lane, "key": "a"}, on=two), task, return_exceptions=True
            )
            assert sum(isinstance(result, psycopg.errors.DeadlockDetected) for result in results) == 1


async def test_within_one_statement_the_keys_are_taken_in_order(stage: Stage) -> None:
    """R16: given as z, a it takes a first: so it waits for a before it has z."""
    lane = await stage.lane()
    one, two, three = await stage.connect(), await stage.connect(), await stage.connect()
    async with one.transaction():
        await stage.insert({"lane": lane, "key": "a"}, on=one)
        task = asyncio.create_task(stage.insert({"lane": lane, "key": "z"}, {"lane": lane, "key": "a"}, on=two))
        await stage.until_waiting(task, two)
        (z,) = await stage.insert({"lane": lane, "key": "z"}, on=three)
        assert z is not None, "nobody holds z"
    assert await task == [None, None]


async def test_release_and_commit_of_the_same_claim_exclude_each_other(stage: Stage) -> None:
    """R3: whichever is first is the end of the claim."""
    one, two = [(await stage.held())[:2] for _ in range(2)]
    first, second = await stage.connect(), await stage.connect()
    async with first.transaction():
        assert await stage.release(one, on=first) == 1
        task = asyncio.create_task(stage.commit(outcome(*one, 2), on=second))
        await stage.until_waiting(task, second)
    assert await task == []
    async with first.transaction():
        assert await stage.commit(outcome(*two, 2), on=first) == [two[0]]
        undo = asyncio.create_task(stage.release(two, on=second))
        await stage.until_waiting(undo, second)
    assert await undo == 0
    assert await stage.value("SELECT count(*) FROM {schema}.all_instances") == 2


async def test_the_same_commit_sent_twice_counts_once(stage: Stage) -> None:
    """R27: a commit whose answer was lost may still be under way when it is sent again."""
    id_, rev, _ = await stage.held()
    lost, again = await stage.connect(), await stage.connect()
    async with lost.transaction():
        await stage.commit(outcome(id_, rev, 0), on=lost)
        task = asyncio.create_task(stage.commit(outcome(id_, rev, 0), on=again))
        await stage.until_waiting(task, again)
    assert await task == []
    assert await stage.row(id_, "rev") == (rev + 1,)
    assert await stage.value("SELECT count(*) FROM {schema}.transitions") == 1


@pytest.mark.parametrize("known", [True, False])
async def test_a_pause_does_not_miss_a_lane_that_is_just_being_made(stage: Stage, known: bool) -> None:
    """Whether the queue is old or new with the lane."""
    if known:
        await stage.lane("q", "old")
    maker, pauser = await stage.connect(), await stage.connect()
    listed = encode([{"queue": "q", "machine": "new", "version": 1, "retention": 1.0}])
    async with maker.transaction():
        await stage.run("queues/lanes", on=maker, lanes=listed)
        task = asyncio.create_task(stage.run("queues/pause", on=pauser, queue="q", paused=True))
        await stage.until_waiting(task, pauser)
    await task
    assert await stage.ask("SELECT machine FROM {schema}.lanes WHERE NOT paused") == []


@pytest.mark.parametrize("known", [True, False])
async def test_a_new_lane_does_not_miss_a_pause_that_is_under_way(stage: Stage, known: bool) -> None:
    if known:
        await stage.lane("q", "old")
    maker, pauser = await stage.connect(), await stage.connect()
    listed = encode([{"queue": "q", "machine": "new", "version": 1, "retention": 1.0}])
    async with pauser.transaction():
        await stage.run("queues/pause", on=pauser, queue="q", paused=True)
        task = asyncio.create_task(stage.run("queues/lanes", on=maker, lanes=listed))
        await stage.until_waiting(task, maker)
    await task
    assert await stage.ask("SELECT machine FROM {schema}.lanes WHERE NOT paused") == []


async def test_two_processes_make_the_same_lane_once(stage: Stage) -> None:
    listed = encode([{"queue": "q", "machine": "m", "version": 1, "retention": 1.0}])
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction():
        first = await stage.run("queues/lanes", on=one, lanes=listed)
        task = asyncio.create_task(stage.run("queues/lanes", on=two, lanes=listed))
        await stage.until_waiting(task, two)
    assert [row[:4] for row in await task] == [row[:4] for row in first]


# Migrations and partitions ------------------------------------------------------------------------


async def test_two_migrations_at_once(schema: str, connect: Callable[[], Awaitable[Connection]]) -> None:
    """One does the work, the other waits for it and finds nothing to do."""
    watcher = Stage(schema, connect, await connect())
    gate, one, two = await connect(), await connect(), await connect()
    async with gate.transaction():
        await watcher.ask("SELECT pg_advisory_xact_lock(%s, 2)", watcher.lockspace, on=gate)
        tasks = [asyncio.create_task(migrate(connection, schema)) for connection in (one, two)]
        for task, on in zip(tasks, (one, two), strict=True):
            await watcher.until_waiting(task, on)
    ran = sorted([await task for task in tasks])
    assert ran == [[], [migration.name for migration in migrations(schema)]]
    await check_version(lambda request: fetch(one, request), schema)
    assert await migrate(one, schema) == []


async def test_two_processes_make_partitions_while_a_commit_is_open(stage: Stage) -> None:
    """Neither the commit nor the partitions wait for each other; each partition is made once."""
    id_, rev, _ = await stage.held()
    await drop_partitions(stage)
    committer, one, two = await stage.connect(), await stage.connect(), await stage.connect()
    async with committer.transaction():
        # Keeps to the swept partition, and history to none: both defaults are free.
        await stage.commit(outcome(id_, rev, 2, keep=1.0, history=0), on=committer)
        async with one.transaction():
            ((made,),) = await stage.run("pruning/ensure", on=one)
            assert made == 7
            task = asyncio.create_task(stage.run("pruning/ensure", on=two))
            await stage.until_waiting(task, two)
        assert await task == [(0,)]
    assert await partitions(stage) == 7


async def test_partitions_that_can_not_be_attached_now_come_later(stage: Stage) -> None:
    """A long reader of everything, like a dump, must not keep a worker from starting."""
    await stage.lane()
    await drop_partitions(stage)
    reader = await stage.connect()
    async with reader.transaction():
        await stage.ask("SELECT count(*) FROM {schema}.transitions_default", on=reader)
        await stage.ask("SELECT count(*) FROM {schema}.finished_default", on=reader)
        assert await stage.run("pruning/ensure") == [(0,)]
        id_, rev, _ = await stage.held()
        assert await stage.commit(outcome(id_, rev, 2)) == [id_], "the default partitions take it meanwhile"
    ((made,),) = await stage.run("pruning/ensure")
    assert made > 0


async def test_dropping_does_not_wait_long_for_an_open_commit(stage: Stage) -> None:
    """It gives up within a fraction of a second, changes nothing, and does it at the next pass."""
    id_, rev, _ = await stage.held()
    await old_partition(stage, "transitions", 3)
    await old_partition(stage, "finished", 3)
    await stage.ask("UPDATE {schema}.instances SET inserted_at = {clock}")
    committer = await stage.connect()
    before = await partitions(stage)
    async with committer.transaction():
        await stage.commit(outcome(id_, rev, 2), on=committer)
        ((dropped, _),) = await stage.run("pruning/partitions")
        assert dropped == []
    assert await partitions(stage) >= before
    ((dropped, _),) = await stage.run("pruning/partitions")
    assert [name.rpartition("_")[0] for name in dropped] == ["finished", "transitions"]


async def test_a_commit_waits_for_a_drop_and_goes_on(stage: Stage) -> None:
    id_, rev, _ = await stage.held()
    await old_partition(stage, "transitions", 3)
    dropper, committer = await stage.connect(), await stage.connect()
    async with dropper.transaction():
        ((dropped, _),) = await stage.run("pruning/partitions", on=dropper)
        assert len(dropped) == 1
        task = asyncio.create_task(stage.commit(outcome(id_, rev, 2), on=committer))
        await stage.until_waiting(task, committer)
    assert await task == [id_]


async def drop_partitions(stage: Stage) -> None:
    for (name,) in await stage.ask(PARTITIONS):
        await stage.ask(f"DROP TABLE {{schema}}.{name}")


async def partitions(stage: Stage) -> int:
    return len(await stage.ask(PARTITIONS))


PARTITIONS = (
    "SELECT relname FROM pg_class WHERE relnamespace = '{schema}'::regnamespace AND relkind = 'r' "
    "AND relname ~ '_[0-9]{{8}}$' ORDER BY 1"
).replace("{{8}}", "{8}")


async def old_partition(stage: Stage, parent: str, days: int) -> str:
    """A partition for the day so many days ago."""
    day = await stage.value("SELECT ({clock} AT TIME ZONE 'UTC')::date - %s::int", days)
    zone = " 00:00+00" if parent == "transitions" else ""
    name = f"{parent}_{day:%Y%m%d}"
    await stage.ask(
        f"CREATE TABLE {{schema}}.{name} PARTITION OF {{schema}}.{parent} "
        f"FOR VALUES FROM ('{day}{zone}') TO ('{day + dt.timedelta(days=1)}{zone}')"
    )
    return name


async def test_a_cancel_and_a_commit_take_the_rows_of_orphans_in_one_order(stage: Stage) -> None:
    """A cascade cancels the children of a parent that has ended: no parent's row keeps it apart from their commits."""
    lane = await stage.lane()
    await stage.insert(*[{"lane": lane, "parent_id": 10**9, "parent_spawn": 1}] * 2)
    (one, rev, *_), (two, other_rev, *_) = sorted(await stage.claim((lane, 0, 2)))
    batch: Any = [
        (SimpleNamespace(id=one, parent_id=10**9, waits=None), Record(one, rev)),
        (SimpleNamespace(id=two, parent_id=10**9, waits=None), Record(two, other_rev, ON, "two")),
    ]
    canceller, worker = await stage.connect(), await stage.connect()
    async with canceller.transaction():
        assert await stage.cancel(one, on=canceller) == [one]
        committing = asyncio.create_task(
            stage.commit(outcome(one, rev, 2), outcome(two, other_rev, 0), first=locked_first(batch), on=worker)
        )
        await stage.until_waiting(committing, worker)
        assert await stage.cancel(two, on=canceller) == [two]
    assert await committing == []
