"""Children's ends against joins, timeouts, each other and the pruner, each order forced by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import psycopg
import pytest
from sql_stage import Connection, Stage, outcome

from gen_durable._runtime.held import Waits

Claims = dict[int, int]


async def family(
    stage: Stage, count: int, *, worker: int = 7, claim: bool = True, retention: float = 86400.0, **park: Any
) -> tuple[int, Claims]:
    """A parent that waits for so many children, which are claimed: its id, their ids with their revs."""
    lane, below = await stage.lane("p", "parent"), await stage.lane("c", "child", retention=retention)
    (id_,) = await stage.insert({"lane": lane})
    ((_, rev, *_),) = await stage.claim((lane, 0, 1), worker=worker)
    return id_, await spawn(stage, id_, rev, count, below, claim=claim, worker=worker, **park)


async def spawn(
    stage: Stage, id_: int, rev: int, count: int, below: int, *, claim: bool = True, worker: int = 7, **park: Any
) -> Claims:
    number = (await stage.row(id_, "coalesce(spawn, 0) + 1") or (0,))[0]
    park.setdefault("children", count)
    async with stage.main.transaction():
        assert await stage.commit(outcome(id_, rev, 4, **park), worker=worker) == [id_]
        await stage.insert(*[{"lane": below, "parent_id": id_, "parent_spawn": number}] * count)
    return {row[0]: row[1] for row in await stage.claim((below, 0, count), worker=worker)} if claim else {}


async def end(
    stage: Stage, parent: int, ids: Claims, kind: int = 3, *, on: Connection | None = None, **fields: Any
) -> list[int]:
    """Ends children in one commit, as the worker does it: their parent is locked first, and they."""
    ended = [outcome(id_, rev, 2, kind=kind, **fields) for id_, rev in sorted(ids.items())]
    return await stage.commit(*ended, first=[parent, *ids], on=on)


async def join(stage: Stage, parent: int) -> tuple[int, int, int]:
    """A join as it stands: its status, how many are left, how many it can spare."""
    row = await stage.row(parent, "status, children_left, children_spare")
    assert row is not None
    return row[0], row[1], row[2]


async def opened(stage: Stage) -> Waits:
    """Claims the parent, which is awake, once."""
    lane = await stage.lane("p", "parent")
    (row,) = await stage.claim((lane, 0, 9))
    assert await stage.claim((lane, 0, 9)) == []
    return msgspec.json.decode(row[12], type=Waits)


def part(ids: Claims, start: int, stop: int) -> Claims:
    return dict(sorted(ids.items())[start:stop])


# The barrier --------------------------------------------------------------------------------------


async def test_a_child_is_there_with_its_barrier_and_not_before(stage: Stage) -> None:
    """R3, R15: until the spawn commits nobody can run a child, so none ends before the join counts."""
    lane, below = await stage.lane("p", "parent"), await stage.lane("c", "child")
    (id_,) = await stage.insert({"lane": lane})
    ((_, rev, *_),) = await stage.claim((lane, 0, 1))
    spawner, other = await stage.connect(), await stage.connect()
    async with spawner.transaction():
        await stage.commit(outcome(id_, rev, 4), on=spawner)
        (child,) = await stage.insert({"lane": below, "parent_id": id_, "parent_spawn": 1}, on=spawner)
        assert await stage.claim((below, 0, 9), on=other) == []
        assert await stage.row(id_, "status") == (2,)
    ((found, child_rev, *_),) = await stage.claim((below, 0, 9), on=other)
    assert found == child
    assert await end(stage, id_, {found: child_rev}) == [child]
    assert await join(stage, id_) == (0, 0, None)


async def test_a_spawn_that_is_rolled_back_leaves_the_claim_as_it_was(stage: Stage) -> None:
    """R3: a key that is taken, say: neither children nor barrier are there."""
    lane, below = await stage.lane("p", "parent"), await stage.lane("c", "child")
    (id_,) = await stage.insert({"lane": lane})
    ((_, rev, *_),) = await stage.claim((lane, 0, 1))
    spawner = await stage.connect()
    async with spawner.transaction(force_rollback=True):
        await stage.commit(outcome(id_, rev, 4), on=spawner)
        await stage.insert({"lane": below, "parent_id": id_, "parent_spawn": 1}, on=spawner)
    assert await stage.row(id_, "status, rev, spawn, children_left") == (2, rev, None, None)
    assert await stage.claim((below, 0, 9)) == []
    assert await stage.commit(outcome(id_, rev, 0)) == [id_]


# Two ends at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
async def test_two_children_that_end_in_two_commits_at_once_both_count(stage: Stage, count: int) -> None:
    """R3, R15: the second waits for the first and counts from there; the last one opens the join, once."""
    parent, ids = await family(stage, count)
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction():
        await end(stage, parent, part(ids, 0, 1), on=one)
        task = asyncio.create_task(end(stage, parent, part(ids, 1, 2), on=two))
        await stage.until_waiting(task, two)
    assert await task == list(part(ids, 1, 2))
    assert await join(stage, parent) == ((0, 0, None) if count == 2 else (4, 1, None))
    if count == 2:
        assert not (await opened(stage)).timed_out


async def test_an_end_that_is_rolled_back_does_not_count(stage: Stage) -> None:
    """R3: the other, which waited for it, counts alone."""
    parent, ids = await family(stage, 2)
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction(force_rollback=True):
        await end(stage, parent, part(ids, 0, 1), on=one)
        task = asyncio.create_task(end(stage, parent, part(ids, 1, 2), on=two))
        await stage.until_waiting(task, two)
    await task
    assert await join(stage, parent) == (4, 1, None)


async def test_an_end_that_is_refused_does_not_count(stage: Stage) -> None:
    """R3, R4: neither twice sent, nor from a claim that was lost."""
    parent, ids = await family(stage, 2)
    ((id_, rev),) = part(ids, 0, 1).items()
    worker, again = await stage.connect(), await stage.connect()
    async with worker.transaction():
        await end(stage, parent, {id_: rev}, on=worker)
        task = asyncio.create_task(end(stage, parent, {id_: rev}, on=again))
        await stage.until_waiting(task, again)
    assert await task == []
    assert await join(stage, parent) == (4, 1, None)


@pytest.mark.parametrize(
    ("park", "first", "second", "between", "after"),
    [
        ({"children": 1}, 3, 3, (0, 0, None), (0, 0, None)),  # any
        ({"children": 2}, 3, 4, (4, 1, None), (0, 0, None)),  # a number; a failure counts
        ({"children": 1, "spare": 2}, 4, 3, (4, 1, 1), (0, 0, 1)),  # any success
        ({"children": 2, "spare": 1}, 4, 4, (4, 2, 0), (0, 2, -1)),  # two successes: can't be reached
        ({"children": 3, "spare": 0}, 5, 3, (0, 3, -1), (0, 3, -1)),  # all successes: at the first that is cancelled
    ],
)
@pytest.mark.parametrize("raced", [True, False])
async def test_every_kind_of_join_counts_both_ends(
    stage: Stage,
    raced: bool,
    park: dict[str, int],
    first: int,
    second: int,
    between: tuple[int, int, int | None],
    after: tuple[int, int, int | None],
) -> None:
    """R15: any, a number, successes only; whether the two ends meet or not. A late one changes nothing."""
    parent, ids = await family(stage, 3, **park)
    if raced:
        one, two = await stage.connect(), await stage.connect()
        async with one.transaction():
            await end(stage, parent, part(ids, 0, 1), first, on=one)
            task = asyncio.create_task(end(stage, parent, part(ids, 1, 2), second, on=two))
            await stage.until_waiting(task, two)
        await task
    else:
        await end(stage, parent, part(ids, 0, 1), first)
        assert await join(stage, parent) == between
        await end(stage, parent, part(ids, 1, 2), second)
    assert await join(stage, parent) == after
    if after[0] == 0:
        assert not (await opened(stage)).timed_out


async def test_a_batch_counts_all_its_ends_of_both_kinds(stage: Stage) -> None:
    """R15: one statement ends some well and some badly."""
    parent, ids = await family(stage, 4, children=2, spare=2)
    (a, b, c, d) = sorted(ids)
    assert await stage.commit(
        outcome(a, ids[a], 2), outcome(b, ids[b], 2, kind=4), outcome(c, ids[c], 0), first=[parent, a, b, c]
    ) == [a, b, c]
    assert await join(stage, parent) == (4, 1, 1)
    await end(stage, parent, {c: ids[c] + 1, d: ids[d]}, 5)
    assert await join(stage, parent) == (0, 1, -1)


# Late and older children --------------------------------------------------------------------------


async def test_a_child_that_is_late_does_not_touch_a_parent_that_goes_on(stage: Stage) -> None:
    """R15: its end and the parent's commit at once, in both orders."""
    parent, ids = await family(stage, 3, children=1)
    await end(stage, parent, part(ids, 0, 1))
    await opened(stage)
    ((rev,),) = [await stage.row(parent, "rev")]
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction():
        await stage.commit(outcome(parent, rev, 0), first=[parent], on=one)
        task = asyncio.create_task(end(stage, parent, part(ids, 1, 2), on=two))
        await stage.until_waiting(task, two)
    assert await task == list(part(ids, 1, 2))
    async with two.transaction():
        await end(stage, parent, part(ids, 2, 3), on=two)
        ends = asyncio.create_task(stage.commit(outcome(parent, rev + 1, 2), first=[parent], on=one))
        await stage.until_waiting(ends, one)
    assert await ends == [parent]
    assert await stage.ask("SELECT count(*) FROM {schema}.finished") == [(4,)]


@pytest.mark.parametrize("first", ["spawn", "child", "spawn, long before"])
async def test_a_child_of_an_older_spawn_does_not_count_for_the_next(stage: Stage, first: str) -> None:
    """R15: of this spawn; whichever of the two commits comes first."""
    parent, ids = await family(stage, 2, children=1)
    await end(stage, parent, part(ids, 0, 1))
    await opened(stage)
    ((rev,),) = [await stage.row(parent, "rev")]
    spawner, worker = await stage.connect(), await stage.connect()
    again = outcome(parent, rev, 4, children=1)
    if first == "spawn":
        async with spawner.transaction():
            await stage.commit(again, on=spawner)
            task = asyncio.create_task(end(stage, parent, part(ids, 1, 2), on=worker))
            await stage.until_waiting(task, worker)
        await task
    elif first == "child":
        async with worker.transaction():
            await end(stage, parent, part(ids, 1, 2), on=worker)
            task = asyncio.create_task(stage.commit(again, on=spawner))
            await stage.until_waiting(task, spawner)
        await task
    else:
        await stage.commit(again)
        assert await end(stage, parent, part(ids, 1, 2)) == list(part(ids, 1, 2))
    assert await join(stage, parent) == (4, 1, None)
    assert await stage.row(parent, "spawn") == (2,)


async def test_one_batch_with_children_of_two_spawns_counts_the_right_one(stage: Stage) -> None:
    """R15"""
    parent, ids = await family(stage, 2, children=1)
    await end(stage, parent, part(ids, 0, 1))
    await opened(stage)
    ((rev,),) = [await stage.row(parent, "rev")]
    below = await stage.lane("c", "child")
    new = await spawn(stage, parent, rev, 2, below)
    await end(stage, parent, part(ids, 1, 2) | part(new, 0, 1))
    assert await join(stage, parent) == (4, 1, None)


# A timeout ----------------------------------------------------------------------------------------


async def test_the_last_end_that_waits_for_the_timeout_finds_the_join_open(stage: Stage) -> None:
    """R14, R15: the timeout has opened it; the child's end changes nothing of it, and is told of all the same."""
    parent, ids = await family(stage, 1, delay=0)
    timer, worker = await stage.connect(), await stage.connect()
    async with timer.transaction():
        assert (await stage.run("timing/promote", on=timer, batch=9))[0][0] == 1
        task = asyncio.create_task(end(stage, parent, ids, on=worker))
        await stage.until_waiting(task, worker)
    assert await task == list(ids)
    assert (await opened(stage)).timed_out
    ((_, _, _, status, _, _),) = await stage.run("joining/children", parent=parent, spawn=1)
    assert status == 6


async def test_the_timeout_passes_by_a_join_that_is_just_opening(stage: Stage) -> None:
    """R14, R15: it does not wait, and finds nothing to do afterwards."""
    parent, ids = await family(stage, 1, delay=0)
    worker = await stage.connect()
    async with worker.transaction():
        await end(stage, parent, ids, on=worker)
        assert (await stage.run("timing/promote", batch=9))[0][0] == 0
    assert (await stage.run("timing/promote", batch=9))[0][0] == 0
    assert not (await opened(stage)).timed_out


async def test_a_timeout_passes_by_a_join_that_is_counting_and_opens_it_at_its_next_look(stage: Stage) -> None:
    """R14, R15"""
    parent, ids = await family(stage, 2, delay=0)
    worker = await stage.connect()
    async with worker.transaction():
        await end(stage, parent, part(ids, 0, 1), on=worker)
        assert (await stage.run("timing/promote", batch=9))[0][0] == 0
    assert (await stage.run("timing/promote", batch=9))[0][0] == 1
    waits = await opened(stage)
    assert (waits.left, waits.timed_out) == (1, True)


# Who waits for whom -------------------------------------------------------------------------------


async def test_two_batches_with_children_of_the_same_two_parents_never_deadlock(stage: Stage) -> None:
    """R3: given in opposite orders, both lock the parents in the order of their ids: the second stops at the first."""
    p, of_p = await family(stage, 2)
    q, of_q = await family(stage, 2)
    gate, one, two = await stage.connect(), await stage.connect(), await stage.connect()
    # Each batch ends a child of each parent, and is held up at Q when it has P.
    async with gate.transaction():
        await stage.ask("SELECT FROM {schema}.instances WHERE id = %s FOR UPDATE", q, on=gate)
        a = asyncio.create_task(ends_of(stage, [p, q], part(of_p, 0, 1) | part(of_q, 0, 1), one))
        await stage.until_waiting(a, one)
        b = asyncio.create_task(ends_of(stage, [q, p], part(of_q, 1, 2) | part(of_p, 1, 2), two))
        await stage.until_waiting(b, two)
        assert not await free(stage, p), "the first has it"
    assert len(await a) == len(await b) == 2
    assert await join(stage, p) == await join(stage, q) == (0, 0, None)


async def ends_of(stage: Stage, parents: list[int], ids: Claims, on: Connection) -> list[int]:
    return await stage.commit(*[outcome(id_, rev, 2) for id_, rev in sorted(ids.items())], first=parents, on=on)


async def free(stage: Stage, id_: int) -> bool:
    """Whether nobody has locked a row."""
    return bool(await stage.ask("SELECT id FROM {schema}.instances WHERE id = %s FOR NO KEY UPDATE SKIP LOCKED", id_))


async def test_unsorted_locks_of_parents_do_deadlock(stage: Stage) -> None:
    """Why "first" is there: the same two ends one after another, in opposite orders, are stopped by the server."""
    p, of_p = await family(stage, 2)
    q, of_q = await family(stage, 2)
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction(force_rollback=True), two.transaction(force_rollback=True):
        await end(stage, p, part(of_p, 0, 1), on=one)
        await end(stage, q, part(of_q, 0, 1), on=two)
        task = asyncio.create_task(end(stage, q, part(of_q, 1, 2), on=one))
        await stage.until_waiting(task, one)
        results = await asyncio.gather(end(stage, p, part(of_p, 1, 2), on=two), task, return_exceptions=True)
        assert sum(isinstance(result, psycopg.errors.DeadlockDetected) for result in results) == 1


async def test_a_batch_with_a_childs_end_and_one_with_its_parents_commit_never_deadlock(stage: Stage) -> None:
    """R3: P commits in a batch with a child of Q, Q in one with a child of P: both begin with P."""
    p, of_p = await family(stage, 2, children=1)
    q, of_q = await family(stage, 2, children=1)
    await end(stage, p, part(of_p, 0, 1))
    await end(stage, q, part(of_q, 0, 1))
    lane = await stage.lane("p", "parent")
    revs = {row[0]: row[1] for row in await stage.claim((lane, 0, 2))}
    ((child_p, rev_p),), ((child_q, rev_q),) = part(of_p, 1, 2).items(), part(of_q, 1, 2).items()
    gate, one, two = await stage.connect(), await stage.connect(), await stage.connect()
    async with gate.transaction():
        await stage.ask("SELECT FROM {schema}.instances WHERE id = %s FOR UPDATE", q, on=gate)
        a = asyncio.create_task(
            stage.commit(outcome(p, revs[p], 1), outcome(child_q, rev_q, 2), first=[p, q, child_q], on=one)
        )
        await stage.until_waiting(a, one)
        b = asyncio.create_task(
            stage.commit(outcome(q, revs[q], 2), outcome(child_p, rev_p, 2), first=[p, q, child_p], on=two)
        )
        await stage.until_waiting(b, two)
    assert await a == [p, child_q]
    assert await b == sorted([q, child_p])


async def test_a_row_and_its_parent_in_one_batch(stage: Stage) -> None:
    """R3, R15: a parent that goes on while its late child ends, in one statement; and one that parks again."""
    parent, ids = await family(stage, 3, children=1)
    await end(stage, parent, part(ids, 0, 1))
    await opened(stage)
    ((rev,),) = [await stage.row(parent, "rev")]
    ((late, late_rev),) = part(ids, 1, 2).items()
    ((last, last_rev),) = part(ids, 2, 3).items()
    assert await stage.commit(outcome(parent, rev, 0), outcome(late, late_rev, 2), first=[parent, late]) == [
        parent,
        late,
    ]
    again = outcome(parent, rev + 1, 4, children=1)
    assert await stage.commit(again, outcome(last, last_rev, 2), first=[parent, last]) == [parent, last]
    assert await join(stage, parent) == (4, 1, None)


# Pruning ------------------------------------------------------------------------------------------


async def kept(stage: Stage) -> list[int]:
    return [row[0] for row in await stage.ask("SELECT id FROM {schema}.finished ORDER BY 1")]


async def test_a_childs_terminal_row_stays_while_its_parents_join_is_open(stage: Stage) -> None:
    """Section 11: also when its retention is nothing; it goes when the parent has gone on."""
    parent, ids = await family(stage, 2)
    await end(stage, parent, part(ids, 0, 1), keep=0.0)
    await stage.run("pruning/sweep", batch=9)
    assert await kept(stage) == list(part(ids, 0, 1)), "the join waits"
    await end(stage, parent, part(ids, 1, 2), keep=0.0)
    await stage.run("pruning/sweep", batch=9)
    assert await kept(stage) == sorted(ids), "it is open, and nobody has looked"
    await opened(stage)
    await stage.run("pruning/sweep", batch=9)
    assert await kept(stage) == sorted(ids), "its step runs"
    ((rev,),) = [await stage.row(parent, "rev")]
    worker = await stage.connect()
    async with worker.transaction():
        await stage.commit(outcome(parent, rev, 0), on=worker)
        await stage.run("pruning/sweep", batch=9)
        assert await kept(stage) == sorted(ids), "its outcome is not committed"
    await stage.run("pruning/sweep", batch=9)
    assert await kept(stage) == []


async def test_a_childs_terminal_row_moves_out_of_a_partition_that_is_dropped(stage: Stage) -> None:
    """Section 11: what nobody waits for goes with its day; the rest is swept when its parent has gone on."""
    parent, ids = await family(stage, 3)
    await end(stage, parent, part(ids, 0, 2), result=[1, 2])
    (alone,) = await stage.insert({"lane": await stage.lane()})
    ((_, rev, *_),) = await stage.claim((await stage.lane(), 0, 1))
    await stage.commit(outcome(alone, rev, 2))
    day = await stage.value("SELECT ({clock} AT TIME ZONE 'UTC')::date - 2")
    name = f"finished_{day:%Y%m%d}"
    await stage.ask(
        f"CREATE TABLE {{schema}}.{name} PARTITION OF {{schema}}.finished "
        f"FOR VALUES FROM ('{day}') TO ('{day}'::date + 1)"
    )
    await stage.ask(f"UPDATE {{schema}}.finished SET bucket = '{day}', expires_at = '{day}'")
    content = "SELECT to_jsonb(f) - 'bucket' FROM {schema}.finished f WHERE id <> %s ORDER BY id"
    before = await stage.ask(content, alone)
    ((dropped, _),) = await stage.run("pruning/partitions")
    assert dropped == [name]
    assert len(before) == 2
    assert await stage.ask(content, alone) == before
    assert await stage.ask("SELECT DISTINCT tableoid::regclass::text, bucket::text FROM {schema}.finished") == [
        (f"{stage.schema}.finished_swept", "infinity")
    ]
    await stage.run("pruning/sweep", batch=9)
    assert await kept(stage) == list(part(ids, 0, 2))
    assert [row[4] for row in await stage.run("joining/children", parent=parent, spawn=1)] == [
        b"[1, 2]",
        b"[1, 2]",
        None,
    ]
    await stage.cancel(parent)
    await stage.run("pruning/sweep", batch=9)
    assert not set(part(ids, 0, 2)) & set(await kept(stage))


async def test_a_child_of_an_older_spawn_is_pruned_while_the_next_join_waits(stage: Stage) -> None:
    """Section 11: its parent has gone on from it."""
    parent, ids = await family(stage, 1)
    await end(stage, parent, ids, keep=0.0)
    await opened(stage)
    ((rev,),) = [await stage.row(parent, "rev")]
    await spawn(stage, parent, rev, 1, await stage.lane("c", "child"))
    await stage.run("pruning/sweep", batch=9)
    assert await kept(stage) == []
