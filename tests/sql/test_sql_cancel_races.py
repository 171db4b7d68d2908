"""Cancels against whatever else happens to a row, each order forced by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sql_stage import Connection, Stage, encode, outcome
from test_sql_join_races import ends_of, family, free, join, part

from gen_durable._runtime.committer import locked_first
from gen_durable._store.connection import fetch
from gen_durable._store.operation import drive
from gen_durable._store.steering import Cancelled, cancel_all, cancel_children

DONE, FAILED, CANCELLED = 6, 7, 8
LIVE_AND_DONE = 1 << DONE


async def cascade(stage: Stage, id_: int, on: Connection) -> Cancelled:
    async with on.transaction():
        operation = cancel_all(stage.sql, [id_], b'{"type": "Cancelled"}', keep=True, cascade=True)
        return await drive(operation, lambda request: fetch(on, request))


async def status(stage: Stage, id_: int) -> int | None:
    """Of a row wherever it is; it is in one place only."""
    rows = await stage.ask("SELECT status FROM {schema}.all_instances WHERE id = %s", id_)
    assert len(rows) < 2
    return rows[0][0] if rows else None


# A cancel and a commit ----------------------------------------------------------------------------


@pytest.mark.parametrize("op", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("first", ["cancel", "commit"])
async def test_a_cancel_and_an_outcome_at_once(stage: Stage, ear: Connection, op: int, first: str) -> None:
    """R3, R4: a cancel that is first refuses the outcome; one that is later ends what the outcome left."""
    id_, rev, _ = await stage.held()
    one, two = await stage.connect(), await stage.connect()
    if first == "cancel":
        async with one.transaction():
            assert await stage.cancel(id_, on=one) == [id_]
            task = asyncio.create_task(stage.commit(outcome(id_, rev, op), on=two))
            await stage.until_waiting(task, two)
        assert await task == []
        assert f"c:7:{id_}:{rev}" in await stage.heard(ear)
    else:
        async with one.transaction():
            assert await stage.commit(outcome(id_, rev, op), on=one) == [id_]
            task = asyncio.create_task(stage.cancel(id_, on=two))
            await stage.until_waiting(task, two)
        assert await task == ([] if op == 2 else [id_])
        assert (f"c:7:{id_}:{rev + 1}" in await stage.heard(ear)) is (op == 0), "only one that runs is told"
    assert await status(stage, id_) == (DONE if (op, first) == (2, "commit") else CANCELLED)
    kinds = [row[1] for row in await stage.history(id_)]
    outcomes = {0: [0], 1: [0], 2: [3], 3: [7], 4: [8]}[op] if first == "commit" else []
    assert kinds == outcomes + ([] if (op, first) == (2, "commit") else [5])


async def test_a_cancel_and_a_claim_at_once(stage: Stage) -> None:
    """R4: the claim passes by; a cancel that waits for a claim finds the row executing, and tells its worker."""
    lane = await stage.lane()
    (id_,) = await stage.insert({"lane": lane})
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction(force_rollback=True):
        await stage.cancel(id_, on=one)
        assert await stage.claim((lane, 0, 1), on=two) == []
    async with one.transaction():
        assert len(await stage.claim((lane, 0, 1), on=one)) == 1
        task = asyncio.create_task(
            stage.run("steering/cancel", on=two, ids=encode([id_]), reason=encode({}), keep=True)
        )
        await stage.until_waiting(task, two)
    assert (id_, 7, "m", lane, 1) in await task


async def test_two_cancels_at_once(stage: Stage) -> None:
    """R3: one ends it, the other finds it ended."""
    id_, _, _ = await stage.held()
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction():
        await stage.cancel(id_, on=one)
        task = asyncio.create_task(stage.cancel(id_, on=two))
        await stage.until_waiting(task, two)
    assert await task == []
    assert [row[1] for row in await stage.history(id_)] == [5]


# A cancel and a family ----------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["cancel", "end"])
async def test_a_cancelled_child_and_an_ended_one_both_count(stage: Stage, first: str) -> None:
    """R3, R15: the last two of a join, one cancelled, one ended, in both orders."""
    parent, ids = await family(stage, 2)
    (a, b) = sorted(ids)
    one, two = await stage.connect(), await stage.connect()
    cancel = lambda on: stage.cancel(a, on=on)  # noqa: E731
    end = lambda on: stage.commit(outcome(b, ids[b], 2), first=[parent, b], on=on)  # noqa: E731
    begin, follow = (cancel, end) if first == "cancel" else (end, cancel)
    async with one.transaction():
        await begin(one)
        task = asyncio.create_task(follow(two))
        await stage.until_waiting(task, two)
    await task
    assert await join(stage, parent) == (0, 0, None)


async def test_a_child_that_is_cancelled_while_it_ends_counts_once(stage: Stage) -> None:
    """R3, R15"""
    parent, ids = await family(stage, 2)
    (a, _) = sorted(ids)
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction():
        await stage.commit(outcome(a, ids[a], 2), first=[parent, a], on=one)
        task = asyncio.create_task(stage.cancel(a, on=two))
        await stage.until_waiting(task, two)
    assert await task == []
    assert await join(stage, parent) == (4, 1, None)


async def test_a_cancel_of_a_child_locks_its_parent_first_as_a_commit_does(stage: Stage) -> None:
    """R3: else it would hold the child that a commit wants, and want the parent that the commit holds."""
    parent, ids = await family(stage, 2)
    (a, _) = sorted(ids)
    gate, client = await stage.connect(), await stage.connect()
    async with gate.transaction():
        await stage.ask("SELECT id FROM {schema}.instances WHERE id = %s FOR UPDATE", parent, on=gate)
        task = asyncio.create_task(stage.cancel(a, on=client))
        await stage.until_waiting(task, client)
        assert await free(stage, a)
    assert await task == [a]


async def test_a_cancel_of_a_child_where_only_successes_count(stage: Stage) -> None:
    """R15: it can't be reached any more, and opens."""
    parent, ids = await family(stage, 2, children=2, spare=0)
    await stage.cancel(min(ids))
    assert await join(stage, parent) == (0, 2, -1)


@pytest.mark.parametrize("first", ["cancel", "spawn"])
async def test_a_cascade_and_a_spawn_in_progress(stage: Stage, first: str) -> None:
    """R3, section 6: either the children were never there, or they are cancelled with their parent."""
    lane, below = await stage.lane("p", "parent"), await stage.lane("c", "child")
    (id_,) = await stage.insert({"lane": lane})
    ((_, rev, *_),) = await stage.claim((lane, 0, 1))
    spawner, client = await stage.connect(), await stage.connect()
    child = {"lane": below, "parent_id": id_, "parent_spawn": 1}
    if first == "cancel":
        async with client.transaction():
            await stage.cancel(id_, on=client)
            task = asyncio.create_task(stage.commit(outcome(id_, rev, 4, children=2), on=spawner))
            await stage.until_waiting(task, spawner)
        assert await task == [], "and so its children are not inserted"
    else:
        async with spawner.transaction():
            await stage.commit(outcome(id_, rev, 4, children=2), on=spawner)
            await stage.insert(child, child, on=spawner)
            ends = asyncio.create_task(cascade(stage, id_, client))
            await stage.until_waiting(ends, client)
        assert len((await ends).ids) == 3
    assert await stage.value("SELECT count(*) FROM {schema}.all_instances WHERE status < 6") == 0


async def test_a_cascade_finds_the_children_of_a_child_that_is_just_spawning(stage: Stage) -> None:
    """Section 6: it has the child's row before it looks for what that has spawned."""
    parent, ids = await family(stage, 1)
    ((child, rev),) = ids.items()
    below = await stage.lane("c", "child")
    spawner, client = await stage.connect(), await stage.connect()
    async with spawner.transaction():
        await stage.commit(outcome(child, rev, 4), on=spawner)
        (grandchild,) = await stage.insert({"lane": below, "parent_id": child, "parent_spawn": 1}, on=spawner)
        task = asyncio.create_task(cascade(stage, parent, client))
        await stage.until_waiting(task, client)
    assert (await task).ids.keys() == {parent, child, grandchild}


async def test_a_cascade_and_the_end_of_a_child(stage: Stage) -> None:
    """R3: the child's commit waits for its parent, and is refused; nothing of the tree is left."""
    parent, ids = await family(stage, 2)
    worker, client = await stage.connect(), await stage.connect()
    async with client.transaction():
        await cascade(stage, parent, client)
        task = asyncio.create_task(ends_of(stage, [parent, *ids], ids, worker))
        await stage.until_waiting(task, worker)
    assert await task == []
    assert [await status(stage, id_) for id_ in (parent, *ids)] == [CANCELLED] * 3


async def test_a_cascade_locks_in_the_order_of_ids_as_commits_do(stage: Stage) -> None:
    """R3: a grandchild whose id is below a child's comes first: a batch with both would deadlock with the levels."""
    lane, below = await stage.lane("p", "parent"), await stage.lane("c", "child")
    (parent,) = await stage.insert({"lane": lane})
    older, grandchild, newer = (row[0] for row in await stage.run("inserting/ids", count=3))
    await stage.insert(
        {"lane": below, "parent_id": parent, "parent_spawn": 1, "own_id": older},
        {"lane": below, "parent_id": older, "parent_spawn": 1, "own_id": grandchild},
        {"lane": below, "parent_id": parent, "parent_spawn": 1, "own_id": newer},
    )
    gate, client = await stage.connect(), await stage.connect()
    async with gate.transaction():
        await stage.ask("SELECT FROM {schema}.instances WHERE id = %s FOR UPDATE", grandchild, on=gate)
        task = asyncio.create_task(cascade(stage, parent, client))
        await stage.until_waiting(task, client)
        assert await free(stage, newer), "what comes later is not locked yet"
        assert not await free(stage, older)
    assert (await task).ids.keys() == {parent, older, grandchild, newer}


class Entry:
    """As much of a claim, and of its outcome, as the flusher looks at to say what is locked first."""

    def __init__(self, id_: int, op: int, parent: int | None, waits: Any = None) -> None:
        self.id, self.op, self.parent_id, self.waits = id_, op, parent, waits


def first_of(*entries: Entry) -> list[int]:
    return locked_first([(entry, entry) for entry in entries])  # type: ignore[list-item,misc]


async def test_a_batch_and_a_cancel_of_several_children_never_deadlock(stage: Stage) -> None:
    """R3: the parent is gone, so only the order of ids keeps them apart: one child ends, a younger one goes on."""
    parent, ids = await family(stage, 2)
    await stage.cancel(parent)
    one, two = sorted(ids)
    first = first_of(Entry(one, 2, parent), Entry(two, 0, parent))
    gate, worker, client = await stage.connect(), await stage.connect(), await stage.connect()
    async with gate.transaction():
        await stage.ask("SELECT FROM {schema}.instances WHERE id = %s FOR UPDATE", one, on=gate)
        batch = stage.run(
            "committing/commit",
            on=worker,
            worker=7,
            outcomes=encode([outcome(one, ids[one], 2), outcome(two, ids[two], 0)]),
            first=encode(first),
            wake=[],
        )
        commit = asyncio.create_task(batch)
        await stage.until_waiting(commit, worker)
        assert await free(stage, two), "it holds nothing that a cancel in the order of ids would have to wait for"
        cancel = asyncio.create_task(stage.cancel(one, two, on=client))
        await stage.until_waiting(cancel, client)
    assert {row[0] for row in await commit if row[1] >= 0} | set(await cancel) == {one, two}


def test_what_is_locked_first() -> None:
    """R3: every row that several transactions may lock together with another: parents, children, who has spawned."""
    spawned = type("Waits", (), {"spawn": 1})
    assert first_of(Entry(5, 2, None), Entry(6, 0, None), Entry(7, 1, None)) == []
    assert first_of(Entry(9, 3, None), Entry(8, 0, None, spawned)) == [8, 9]
    assert first_of(Entry(9, 2, 4), Entry(8, 0, 3)) == [4, 8, 9]
    assert first_of(Entry(9, 2, 4), Entry(8, 2, 3), Entry(7, 2, None)) == [3, 4], "the delete locks the rest in order"
    assert first_of(Entry(9, 2, 4), Entry(8, 2, 3), Entry(7, 3, None)) == [3, 4, 7, 8, 9]
    assert first_of(Entry(9, 2, 8), Entry(7, 2, 6)) == [6, 7, 8, 9], "a parent that comes after another's child"


async def test_the_rest_of_a_join_is_cancelled_without_its_parent(stage: Stage) -> None:
    """R15: of this spawn, and no other; the join that is open is not counted down."""
    parent, ids = await family(stage, 3, children=1)
    (a, *rest) = sorted(ids)
    await ends_of(stage, [parent], part(ids, 0, 1), stage.main)
    operation = cancel_children(stage.sql, parent, 1, b"{}", keep=True)
    done = await drive(operation, lambda request: fetch(stage.main, request))
    assert sorted(done.ids) == rest
    assert await join(stage, parent) == (0, 0, None)
    assert await status(stage, a) == DONE
