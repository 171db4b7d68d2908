"""The SQL functions against others, each order forced by hand: they wait, see and lock as their statements do."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg
import pytest
from functions_stage import Caller
from sql_stage import Stage, outcome

INSERT = "SELECT {s}.insert_instance('Order', '{\"order\": 1}', key => %s, on_conflict => 'existing')"


@pytest.fixture
async def two(caller: Caller, stage: Stage) -> list[Caller]:
    """Two callers more, on the same schema."""
    return [Caller(caller.schema, await stage.connect()) for _ in range(2)]


@pytest.mark.parametrize("commits", [True, False])
async def test_a_key_that_another_transaction_is_taking(stage: Stage, two: list[Caller], commits: bool) -> None:
    """R16: the second waits for the first, and has its holder, or takes the key when that rolls back."""
    one, other = two
    transaction = one.connection.transaction(force_rollback=not commits)
    async with transaction:
        first = await one.one(INSERT, "k")
        task = asyncio.create_task(other.one(INSERT, "k"))
        await stage.until_waiting(task, other.connection)
    assert (await task == first) is commits
    assert await stage.value("SELECT count(*) FROM {schema}.instances") == 1


async def test_the_same_keys_in_opposite_orders(stage: Stage, two: list[Caller]) -> None:
    """R16: two calls with many keys lock them in one order, whatever the order of their items: no deadlock."""
    keys = [f"k{n}" for n in range(20)]
    call = "SELECT count(*) FILTER (WHERE NOT duplicate) FROM {s}.insert_instances(%s::jsonb)"
    items = [{"machine": "Fixed", "key": key} for key in keys]
    gate = Caller(stage.schema, await stage.connect())
    await gate.one("SELECT {s}.insert_instance('Fixed')")  # its lane is there: the calls wait for keys only
    async with gate.connection.transaction():
        await gate.one(INSERT, keys[10])
        up = asyncio.create_task(two[0].one(call, json.dumps(items)))
        await stage.until_waiting(up, two[0].connection)
        down = asyncio.create_task(two[1].one(call, json.dumps(items[::-1])))
        await stage.until_waiting(down, two[1].connection)
    assert sorted([await up, await down]) == [0, 19]


async def test_lanes_that_are_missing_in_opposite_orders(stage: Stage, two: list[Caller]) -> None:
    """R16: the lanes of a call are made in one order, before its rows: no deadlock."""
    await stage.ask("INSERT INTO {schema}.queues (name) VALUES ('mails'), ('orders')")
    call = "SELECT count(*) FROM {s}.insert_instances(%s::jsonb)"
    items = [{"machine": "Order", "state": {"order": 1}}, {"machine": "mail", "state": {"to": "a"}}]
    lock = "SELECT FROM {schema}.queues WHERE name = %s FOR UPDATE"
    mails, orders = await stage.connect(), await stage.connect()
    async with mails.transaction():
        await stage.ask(lock, "mails", on=mails)
        async with orders.transaction():
            await stage.ask(lock, "orders", on=orders)
            tasks = [
                asyncio.create_task(caller.one(call, json.dumps(listed)))
                for caller, listed in zip(two, (items, items[::-1]), strict=True)
            ]
            for task, caller in zip(tasks, two, strict=True):
                await stage.until_waiting(task, caller.connection)
    assert [await task for task in tasks] == [2, 2]


async def test_a_holder_that_ends_while_the_key_is_asked_for(stage: Stage, two: list[Caller]) -> None:
    """R16: the key is free again then; the call does not fail, and does not answer with the ended one."""
    one, other = two
    holder = await one.one(INSERT, "k")
    async with one.connection.transaction():
        await one.one("SELECT {s}.cancel(%s)", holder)
        task = asyncio.create_task(other.one(INSERT, "k"))
        await stage.until_waiting(task, other.connection)
    assert await task > holder
    assert await stage.value("SELECT count(*) FROM {schema}.instances") == 1


GATE = """
ALTER FUNCTION {schema}.run_holders RENAME TO real_holders;
CREATE FUNCTION {schema}.run_holders(keys text) RETURNS TABLE (key text, id bigint, status smallint)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(4711);
    RETURN QUERY SELECT * FROM {schema}.real_holders(keys);
END $$
"""


@pytest.mark.parametrize("many", [False, True])
async def test_a_holder_that_ends_between_the_insert_and_the_look(stage: Stage, two: list[Caller], many: bool) -> None:
    """R16: the insert found the key taken, and its holder is gone when it is looked for: it is inserted after all."""
    one, other = two
    holder = await one.one(INSERT, "k")
    await stage.ask(GATE)
    gate = await stage.connect()
    async with gate.transaction():
        await stage.ask("SELECT pg_advisory_xact_lock(4711)", on=gate)
        if many:
            items = [{"machine": "Fixed", "key": key} for key in ("a", "k", "z")]
            call = "SELECT array_agg(id ORDER BY place) FROM {s}.insert_instances(%s::jsonb) WHERE NOT duplicate"
            task = asyncio.create_task(other.one(call, json.dumps(items)))
        else:
            task = asyncio.create_task(other.one(INSERT, "k"))
        await stage.until_waiting(task, other.connection)
        await one.one("SELECT {s}.cancel(%s)", holder)
    await task
    keys = await stage.ask("SELECT key FROM {schema}.instances ORDER BY key")
    assert keys == ([("a",), ("k",), ("z",)] if many else [("k",)])


async def parked(caller: Caller, stage: Stage) -> tuple[int, int]:
    """An instance that a worker is just running, with its rev."""
    id_ = await caller.one(INSERT, "o")
    await stage.register(7)
    lane = await stage.value("SELECT lane FROM {schema}.instances")
    ((claimed, rev, *_),) = await stage.claim((lane, 0, 1))
    assert claimed == id_
    return id_, rev


async def test_a_signal_that_waits_for_the_park_wakes_it(stage: Stage, caller: Caller, two: list[Caller]) -> None:
    """R10: the commit that parks came first; the signal waits for it and finds the row parked."""
    id_, rev = await parked(caller, stage)
    committer = await stage.connect()
    async with committer.transaction():
        await stage.commit(outcome(id_, rev, 3, awaits=["paid"], step="ship"), on=committer)
        task = asyncio.create_task(two[0].one("SELECT {s}.signal(%s, 'paid')", id_))
        await stage.until_waiting(task, two[0].connection)
    assert await task is True
    assert await caller.row(id_, "i.status, i.inbox") == (0, 1)


async def test_a_park_that_waits_for_the_signal_stays_awake(stage: Stage, caller: Caller, two: list[Caller]) -> None:
    """R10: the signal came first, in a transaction that was still open; the commit looks again under the row's lock."""
    id_, rev = await parked(caller, stage)
    committer = await stage.connect()
    async with two[0].connection.transaction():
        assert await two[0].one("SELECT {s}.signal('o', 'paid')") is True
        task: Any = asyncio.create_task(stage.commit(outcome(id_, rev, 3, awaits=["paid"], step="ship"), on=committer))
        await stage.until_waiting(task, committer)
    await task
    assert await caller.row(id_, "i.status") == (0,)


async def test_a_signal_to_a_key_whose_holder_ends(stage: Stage, caller: Caller, two: list[Caller]) -> None:
    """R12: it goes to the next holder where there is one by then, else nowhere."""
    first = await caller.one(INSERT, "o")
    async with two[0].connection.transaction():
        await two[0].one("SELECT {s}.cancel(%s)", first)
        second = await two[0].one(INSERT, "o")
        task = asyncio.create_task(two[1].one("SELECT {s}.signal('o', 'paid')"))
        await stage.until_waiting(task, two[1].connection)
    assert await task is True
    assert await caller.row(second, "i.inbox") == (1,)
    async with two[0].connection.transaction():
        await two[0].one("SELECT {s}.cancel(%s)", second)
        task = asyncio.create_task(two[1].one("SELECT {s}.signal('o', 'paid')"))
        await stage.until_waiting(task, two[1].connection)
    with pytest.raises(psycopg.errors.NoDataFound):
        await task


async def test_two_that_signal_or_insert(stage: Stage, caller: Caller, two: list[Caller]) -> None:
    """R10, R16: one inserts, the other waits for that and delivers; both signals are there."""
    call = "SELECT {s}.signal_or_insert('Order', '{\"order\": 1}', 'o', 'paid')"
    async with two[0].connection.transaction():
        first = await two[0].one(call)
        task = asyncio.create_task(two[1].one(call))
        await stage.until_waiting(task, two[1].connection)
    assert await task == first
    assert await caller.row(first, "i.inbox") == (2,)


async def test_workers_are_told_at_the_commit(stage: Stage, caller: Caller, ear: Any) -> None:
    """R19: once for each queue, and for a lane that is new; nobody is told of what was rolled back."""
    async with caller.connection.transaction(force_rollback=True):
        await caller.one(INSERT, "a")
    assert await stage.heard(ear) == []
    async with caller.connection.transaction():
        await caller.one(INSERT, "a")
        await caller.one(INSERT, "b")
        await caller.one("SELECT {s}.insert_instance('Fixed')")
        await caller.one("SELECT {s}.insert_instance('mail', '{\"to\": \"a\"}', delay => '5 s')")
    assert sorted(await stage.heard(ear)) == ["k:", "l:", "q:orders", "t:"]


async def test_a_family_is_cancelled_in_the_order_of_ids(stage: Stage, caller: Caller, two: list[Caller]) -> None:
    """R15: as commits lock: what comes after a row that it waits for is not locked yet, whatever its generation."""
    root, child, grandchild, last = [await caller.one(INSERT, f"f{n}") for n in range(4)]
    for id_, parent in ((child, root), (grandchild, child), (last, root)):
        await stage.ask("UPDATE {schema}.instances SET parent_id = %s, parent_spawn = 1 WHERE id = %s", parent, id_)
    gate = await stage.connect()
    async with gate.transaction():
        await stage.ask("SELECT FROM {schema}.instances WHERE id = %s FOR UPDATE", grandchild, on=gate)
        task = asyncio.create_task(two[0].one("SELECT {s}.cancel(%s, cascade => true)", root))
        await stage.until_waiting(task, two[0].connection)
        await stage.ask("SELECT FROM {schema}.instances WHERE id = %s FOR UPDATE NOWAIT", last)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await stage.ask("SELECT FROM {schema}.instances WHERE id = %s FOR UPDATE NOWAIT", child)
    assert await task is True
    assert await stage.value("SELECT count(*) FROM {schema}.instances") == 0
