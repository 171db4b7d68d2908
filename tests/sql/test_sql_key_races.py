"""Retries, keys and replacements against whatever else happens to a row, each order forced by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import psycopg
import pytest
from sql_stage import Connection, Stage, encode, outcome
from test_sql_join_races import ends_of, family, join

from gen_durable._store.connection import fetch
from gen_durable._store.inserting import NewInstance, Placed, replace_or_insert
from gen_durable._store.operation import Request, Row, drive
from gen_durable._store.steering import bring_back

DONE, FAILED, CANCELLED = 6, 7, 8
LIVE_AND_DONE = 1 << DONE


async def ended(stage: Stage, kind: int = 4, **row: Any) -> int:
    """An instance that has failed."""
    id_, rev, _ = await stage.held(**row)
    await stage.commit(outcome(id_, rev, 2, kind=kind))
    return id_


async def retry(stage: Stage, id_: int, on: Connection | None = None) -> bool:
    connection = on or stage.main
    return await drive(bring_back(stage.sql, id_), lambda request: fetch(connection, request))


async def status(stage: Stage, id_: int) -> int | None:
    """Of a row wherever it is; it is in one place only."""
    rows = await stage.ask("SELECT status FROM {schema}.all_instances WHERE id = %s", id_)
    assert len(rows) < 2
    return rows[0][0] if rows else None


# A retry ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("park", [{}, {"children": 2, "spare": 1}])
async def test_a_retried_child_is_counted_again(stage: Stage, park: dict[str, int]) -> None:
    """R15: the join waits for its second end; the count is as if the first had not been."""
    parent, ids = await family(stage, 3, **park)
    before = await join(stage, parent)
    (a, b, c) = sorted(ids)
    await stage.commit(outcome(a, ids[a], 2, kind=4), first=[parent, a])
    assert await retry(stage, a)
    assert await join(stage, parent) == before
    lane = await stage.lane("c", "child")
    ((_, rev, *_),) = await stage.claim((lane, 0, 9))
    await ends_of(stage, [parent], {a: rev, b: ids[b], c: ids[c]}, stage.main)
    assert (await join(stage, parent))[:2] == (0, 0 if not park else -1)


@pytest.mark.parametrize("first", ["retry", "end"])
async def test_a_retry_and_the_last_end_at_once(stage: Stage, first: str) -> None:
    """R15: the join either waits for the retried one, or has opened without it."""
    parent, ids = await family(stage, 2)
    (a, b) = sorted(ids)
    await stage.commit(outcome(a, ids[a], 2, kind=4), first=[parent, a])
    one, two = await stage.connect(), await stage.connect()
    if first == "retry":
        async with one.transaction():
            assert await retry(stage, a, one)
            task = asyncio.create_task(ends_of(stage, [parent], {b: ids[b]}, two))
            await stage.until_waiting(task, two)
        await task
        assert await join(stage, parent) == (4, 1, None)
    else:
        async with one.transaction():
            await ends_of(stage, [parent], {b: ids[b]}, one)
            again = asyncio.create_task(retry(stage, a, two))
            await stage.until_waiting(again, two)
        assert await again
        assert await join(stage, parent) == (0, 0, None)
    lane = await stage.lane("c", "child")
    ((_, rev, *_),) = await stage.claim((lane, 0, 9))
    await ends_of(stage, [parent], {a: rev}, stage.main)
    assert await join(stage, parent) == (0, 0, None)


@pytest.mark.parametrize("child", [True, False])
async def test_two_retries_at_once_are_one(stage: Stage, child: bool) -> None:
    """R3: of a child, counted once."""
    parent, ids = await family(stage, 2)
    (a, _) = sorted(ids)
    await stage.commit(outcome(a, ids[a], 2, kind=4), first=[parent, a])
    id_ = a if child else await ended(stage)
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction():
        assert await retry(stage, id_, one)
        task = asyncio.create_task(retry(stage, id_, two))
        await stage.until_waiting(task, two)
    assert not await task
    assert await status(stage, id_) == 0
    assert await join(stage, parent) == (4, 2 if child else 1, None)


async def test_a_retry_and_the_pruner(stage: Stage) -> None:
    """Section 11: what is being retried is passed by; what is being deleted is not there for a retry."""
    id_ = await ended(stage)
    await stage.ask("UPDATE {schema}.finished SET expires_at = {clock}, bucket = 'infinity'")
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction(force_rollback=True):
        assert await retry(stage, id_, one)
        await stage.run("pruning/sweep", batch=9)
    async with one.transaction():
        await stage.run("pruning/sweep", on=one, batch=9)
        task = asyncio.create_task(retry(stage, id_, two))
        await stage.until_waiting(task, two)
    assert not await task
    assert await status(stage, id_) is None


@pytest.mark.parametrize("committed", [True, False])
async def test_a_retry_waits_for_an_insert_of_its_key(stage: Stage, committed: bool) -> None:
    """R16: one of them has the key; the retried one stays as it was."""
    id_ = await ended(stage, key="k")
    lane = await stage.lane()
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction(force_rollback=not committed):
        (other,) = await stage.insert({"lane": lane, "key": "k"}, on=one)
        assert other is not None
        task = asyncio.create_task(retry(stage, id_, two))
        await stage.until_waiting(task, two)
    if committed:
        with pytest.raises(psycopg.errors.UniqueViolation):
            await task
    else:
        assert await task
    assert await status(stage, id_) == (FAILED if committed else 0)


@pytest.mark.parametrize("committed", [True, False])
async def test_an_insert_waits_for_a_retry_of_its_key(stage: Stage, committed: bool) -> None:
    """R16: the other way round: it is a duplicate, or has the key."""
    id_ = await ended(stage, key="k")
    lane = await stage.lane()
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction(force_rollback=not committed):
        assert await retry(stage, id_, one)
        task = asyncio.create_task(stage.insert({"lane": lane, "key": "k"}, on=two))
        await stage.until_waiting(task, two)
    (other,) = await task
    assert (other is None) is committed
    assert await status(stage, id_) == (0 if committed else FAILED)


async def test_a_retry_takes_its_reservation_back(stage: Stage) -> None:
    """R16: nobody gets between: the key is reserved before, held after, and reserved again."""
    id_ = await ended(stage, key="k", scope=1 << FAILED)
    lane = await stage.lane()
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction():
        assert await retry(stage, id_, one)
        task = asyncio.create_task(stage.insert({"lane": lane, "key": "k"}, on=two))
        await stage.until_waiting(task, two)
    assert await task == [None]
    assert await stage.insert({"lane": lane, "key": "k"}) == [None]
    ((_, rev, *_),) = await stage.claim((lane, 0, 9))
    await stage.commit(outcome(id_, rev, 2, kind=4))
    assert await stage.insert({"lane": lane, "key": "k"}) == [None]


async def test_a_retry_while_its_reservation_is_swept(stage: Stage) -> None:
    """R16: it waits for the sweep, and is a row of its own."""
    id_ = await ended(stage, key="k", scope=1 << FAILED)
    await stage.ask("UPDATE {schema}.instances SET due_at = {clock}")
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction():
        await stage.run("pruning/sweep", on=one, batch=9)
        task = asyncio.create_task(retry(stage, id_, two))
        await stage.until_waiting(task, two)
    assert await task
    assert await stage.row(id_, "status, key, scope") == (0, "k", 1 << FAILED)


# Reserved keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "how", "reserved"),
    [
        (None, 3, False),
        (LIVE_AND_DONE, 3, True),
        (LIVE_AND_DONE, 4, False),
        (1 << FAILED | 1 << CANCELLED, 4, True),
        (1 << FAILED | 1 << CANCELLED, "cancel", True),
        (LIVE_AND_DONE, "cancel", False),
        (0, 3, False),
    ],
)
async def test_an_insert_that_waits_for_the_end_of_its_keys_holder(
    stage: Stage, scope: int | None, how: Any, reserved: bool
) -> None:
    """R16: it finds the reservation that the end leaves in the same transaction, or has the key."""
    id_, rev, _ = await stage.held(key="k", scope=scope)
    lane = await stage.lane()
    worker, client = await stage.connect(), await stage.connect()
    async with worker.transaction():
        if how == "cancel":
            await stage.cancel(id_, on=worker)
        else:
            await stage.commit(outcome(id_, rev, 2, kind=how), on=worker)
        insert = stage.insert({"lane": lane, "key": "k"}, on=client)
        if scope == 0:
            (fresh,) = await insert  # a loose key holds nobody up
        else:
            task = asyncio.create_task(insert)
            await stage.until_waiting(task, client)
    if scope != 0:
        (fresh,) = await task
    assert (fresh is None) is reserved
    assert await stage.run("inserting/holders", keys='["k"]') == [
        ("k", id_ if reserved else fresh, 9 if reserved else 0)
    ]
    assert (await stage.run("committing/locate", ids=encode([id_])))[0][1:3] == (
        rev + 1, CANCELLED if how == "cancel" else how + 3,
    )  # fmt: skip


async def test_a_reservation_is_nothing_but_its_key(stage: Stage) -> None:
    """R16: nobody sees it, claims it, signals it, cancels it, or is told of it as of an instance."""
    id_ = await ended(stage, 3, key="k", scope=LIVE_AND_DONE)
    lane = await stage.lane()
    assert await stage.row(id_, "status") == (9,)
    assert await status(stage, id_) == DONE
    assert await stage.claim((lane, 0, 9)) == []
    assert await stage.send(id_) is await stage.send("k") is None
    assert await stage.cancel(id_) == []
    assert await stage.run("reading/watch", id=id_) == []
    none = dict.fromkeys(["machine", "queue", "statuses", "key_prefix", "before"])
    assert [row[0] for row in await stage.run("reading/page", **none, limit=9)] == [id_]
    assert [row[0] for row in await stage.run("reading/by_key", key="k")] == [id_]


async def test_a_reservation_goes_with_its_terminal_row(stage: Stage) -> None:
    """R16, section 11: in the same pass; an insert that comes meanwhile waits for it, and has the key."""
    id_, rev, _ = await stage.held(key="k", scope=LIVE_AND_DONE)
    await stage.commit(outcome(id_, rev, 2, keep=0.0))
    lane = await stage.lane()
    pruner, client = await stage.connect(), await stage.connect()
    async with pruner.transaction():
        await stage.run("pruning/sweep", on=pruner, batch=9)
        task = asyncio.create_task(stage.insert({"lane": lane, "key": "k"}, on=client))
        await stage.until_waiting(task, client)
    (fresh,) = await task
    assert fresh is not None
    assert await status(stage, id_) is None


async def test_loose_keys_collide_with_nobody(stage: Stage) -> None:
    """R16: neither with each other nor with one that holds the key, in both orders, while the others are open."""
    lane = await stage.lane()
    one, two = await stage.connect(), await stage.connect()
    loose, strict = {"lane": lane, "key": "k", "scope": 0}, {"lane": lane, "key": "k"}
    async with one.transaction():
        (a,) = await stage.insert(loose, on=one)
        (b,) = await stage.insert(loose, on=two)
        (c,) = await stage.insert(strict, on=two)
        assert None not in (a, b, c)
    async with one.transaction():
        assert await stage.insert(strict, on=one) == [None]
        assert None not in await stage.insert(loose, loose, on=two)
    assert await stage.run("inserting/holders", keys='["k"]') == [("k", c, 0)]


# Replacing ----------------------------------------------------------------------------------------


def new(lane: int) -> NewInstance:
    return NewInstance(lane, "one", msgspec.Raw(b'{"n": 2}'), "k")


async def replace(stage: Stage, lane: int, on: Connection) -> Placed:
    return await drive(replace_or_insert(stage.sql, new(lane)), lambda request: fetch(on, request))


@pytest.mark.parametrize("committed", [True, False])
async def test_a_replacement_waits_for_a_claim(stage: Stage, committed: bool) -> None:
    """R16: what was claimed has started and stays; where the claim is rolled back it has not."""
    lane = await stage.lane()
    (id_,) = await stage.insert({"lane": lane, "key": "k"})
    await stage.register(7)
    worker, client = await stage.connect(), await stage.connect()
    async with worker.transaction(force_rollback=not committed):
        await stage.claim((lane, 0, 1), on=worker)
        task = asyncio.create_task(replace(stage, lane, client))
        await stage.until_waiting(task, client)
    assert await task == Placed(id_, duplicate=committed)
    assert await stage.row(id_, "state") == (b"{}" if committed else b'{"n": 2}',)


async def test_a_claim_passes_by_what_is_being_replaced_and_runs_the_new(stage: Stage) -> None:
    """R16: never the old content under the new."""
    lane = await stage.lane()
    (id_,) = await stage.insert({"lane": lane, "key": "k"})
    client = await stage.connect()
    async with client.transaction():
        assert await replace(stage, lane, client) == Placed(id_, duplicate=False)
        assert await stage.claim((lane, 0, 1)) == []
    ((claimed, _, _, _, state, *_),) = await stage.claim((lane, 0, 1))
    assert (claimed, state) == (id_, b'{"n": 2}')


@pytest.mark.parametrize("scope", [None, LIVE_AND_DONE])
async def test_a_replacement_waits_for_the_end_of_the_keys_holder(stage: Stage, scope: int | None) -> None:
    """R16: then it is inserted, or the key is reserved."""
    id_, rev, _ = await stage.held(key="k", scope=scope)
    lane = await stage.lane()
    worker, client = await stage.connect(), await stage.connect()
    async with worker.transaction():
        await stage.commit(outcome(id_, rev, 2), on=worker)
        task = asyncio.create_task(replace(stage, lane, client))
        await stage.until_waiting(task, client)
    place = await task
    assert place.duplicate is (scope is not None)
    assert (place.id == id_) is (scope is not None)


@pytest.mark.parametrize("rivals", [["waits"], ["claimed"], ["claimed", "waits"], ["claimed", "claimed"]])
async def test_who_comes_between_the_look_and_the_insert_is_looked_at_too(stage: Stage, rivals: list[str]) -> None:
    """R16: whoever has the key in the end is replaced if it waits, and named if it has started."""
    lane = await stage.lane()
    came: list[int] = []

    async def tampered(request: Request) -> list[Row]:
        if request.statement.name == "inserting/insert" and len(came) < len(rivals):
            if came:
                await stage.cancel(came[-1])
            came.extend(id_ for id_ in await stage.insert({"lane": lane, "key": "k"}) if id_ is not None)
            if rivals[len(came) - 1] == "claimed":
                assert len(await stage.claim((lane, 0, 1))) == 1
        return await fetch(stage.main, request)

    place = await drive(replace_or_insert(stage.sql, new(lane)), tampered)
    assert place == Placed(came[-1], duplicate=rivals[-1] == "claimed")
    assert len(came) == len(rivals)
