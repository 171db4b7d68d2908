"""Starting and signalling instances from SQL: each function with each argument, and what a worker makes of it."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from typing import Any

import psycopg
import pytest
from functions_stage import Caller, Order, OrderTwo, make_engine
from psycopg import AsyncConnection

from gen_durable import Engine
from gen_durable.client import BulkItem
from gen_durable.errors import NoSuchInstance

AT = dt.datetime(2100, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
COLUMNS = (
    "lane, status, priority, step, key, scope, state, gate, own_gate, rate, weight, line, rev, attempt, worker, "
    "CASE WHEN due_at < '2099-01-01' THEN round(extract(epoch FROM due_at - inserted_at)) END, "
    "CASE WHEN due_at > '2099-01-01' THEN due_at END"
)


@pytest.fixture
def engine(caller: Caller, database_url: str) -> Engine:
    """An engine with a worker, not started."""
    return make_engine(database_url, caller.schema)


# What is inserted ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "python"),
    [
        ("", {}),
        (", key => 'k'", {"key": "k"}),
        (", queue => 'mails', priority => -5", {"queue": "mails", "priority": -5}),
        (", delay => '90 seconds'", {"delay": 90}),
        (", delay => make_interval(hours => 2)", {"delay": 7200}),
        (", at => '2100-01-02 03:04:05+00'", {"at": AT}),
        (", key => 'k', scope => '{}'", {"key": "k", "scope": ()}),
        (
            ", key => 'k', scope => ARRAY['live', 'done', 'cancelled']",
            {"key": "k", "scope": ("live", "done", "cancelled")},
        ),
        (", key => 'k', scope => ARRAY['live', 'failed']", {"key": "k", "scope": ("live", "failed")}),
        (", key => 'k', scope => ARRAY['live']", {"key": "k", "scope": ("live",)}),
        (", concurrency_key => 'account:7'", {"concurrency_key": "account:7"}),
        (", concurrency_key => 'crm', concurrency_partition => '7'", {"concurrency_key": ("crm", 7)}),
        (", rate_limit => 'mail', weight => 4", {"rate_limit": "mail", "weight": 4}),
        (", rate_limit => 'mail', rate_partition => 'a', weight => 1", {"rate_limit": ("mail", "a"), "weight": 1}),
        (", concurrency_key => '', rate_limit => ''", {"concurrency_key": None, "rate_limit": None}),
    ],
    ids=lambda value: value[2:] or "nothing" if isinstance(value, str) else "",
)
async def test_a_row_from_sql_is_the_client_s_row(
    caller: Caller, database_url: str, sql: str, python: dict[str, Any]
) -> None:
    """R20: whatever the argument, both doors write the same."""
    state = {"order": 7, "note": None, "tags": []}
    id_ = await caller.one(f"SELECT {{s}}.insert_instance('Order', %s::jsonb{sql})", json.dumps(state))
    mine = await caller.all(f"SELECT {COLUMNS} FROM {{s}}.instances WHERE id = %s", id_)
    await caller.all("DELETE FROM {s}.instances")
    async with make_engine(database_url, caller.schema, queues={}) as client:
        (inserted,) = await client.insert_many([BulkItem(Order(order=7), **python)])
    assert mine == await caller.all(f"SELECT {COLUMNS} FROM {{s}}.instances WHERE id = %s", inserted.id)


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("Fixed", ("ctwo\x1f7", "cone", None, None)),
        ("Fixed', concurrency_key => 'three", ("ctwo\x1f7", "cthree", None, None)),
        ("Tenant', '{\"tenant\": \"a\"}', concurrency_key => '', rate_limit => '", (None, None, None, None)),
        (
            "Tenant', '{\"tenant\": \"a\"}', concurrency_key => 'crm', concurrency_partition => 'a', "
            "rate_limit => 'mail', rate_partition => 'a', weight => '3",
            ("ccrm\x1fa", "ccrm\x1fa", "rmail\x1fa", 3),
        ),
    ],
    ids=["declared", "given", "none", "computed"],
)
async def test_limits_are_those_that_the_class_declares(caller: Caller, name: str, limits: tuple[Any, ...]) -> None:
    """R24: and what a function of Python's would say is given."""
    id_ = await caller.one(f"SELECT {{s}}.insert_instance('{name}')")
    assert await caller.row(id_, "i.gate, i.own_gate, i.rate, i.weight") == limits


async def test_the_highest_version_is_meant_unless_one_is_given(caller: Caller, database_url: str) -> None:
    """R9: its own first step, fields and limits count."""
    async with make_engine(database_url, caller.schema, OrderTwo, queues={}):
        pass
    new = await caller.one('SELECT {s}.insert_instance(\'Order\', \'{"order": 1, "extra": "x"}\')')
    old = await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 1}', version => 1)")
    assert await caller.row(new, "l.version, i.step, i.rate, i.weight, i.priority") == (2, "begin", "rmail", 2, 0)
    assert await caller.row(old, "l.version, i.step, i.rate, i.weight, i.priority") == (1, "start", None, None, 3)


async def test_a_machine_that_says_something_else_is_registered_anew(caller: Caller, database_url: str) -> None:
    """R9: what the last engine said counts; one that says the same writes nothing."""
    before = await caller.all("SELECT name, xmin::text FROM {s}.machines ORDER BY name")

    class Changed(Order, name="Order", queue="orders", priority=9):
        pass

    async with make_engine(database_url, caller.schema, queues={}):
        pass
    assert await caller.all("SELECT name, xmin::text FROM {s}.machines ORDER BY name") == before
    async with make_engine(database_url, caller.schema, Changed, queues={}):
        pass
    after = await caller.all("SELECT name, xmin::text FROM {s}.machines ORDER BY name")
    assert {name for (name, mark), (_, was) in zip(after, before, strict=True) if mark != was} == {"Order"}
    id_ = await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 1}')")
    assert await caller.row(id_, "i.priority") == (9,)


async def test_a_lane_is_made_with_the_machine_s_retention(caller: Caller) -> None:
    await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 1}', queue => 'mails')")
    lanes = await caller.all("SELECT queue, machine, version, retention FROM {s}.lanes WHERE machine = 'Order'")
    assert lanes == [("mails", "Order", 1, 7200)]


# Keys ---------------------------------------------------------------------------------------------


async def test_a_key_that_is_taken(caller: Caller) -> None:
    """R16: a unique violation that names the holder; or the holder; or the new content in its place."""
    call = "SELECT {s}.insert_instance('Order', jsonb_build_object('order', %s::int), key => 'k', on_conflict => %s)"
    first = await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 1}', key => 'k', delay => '1 hour')")
    error = await caller.refused(call, 2, "raise")
    assert error.sqlstate == "23505"
    assert error.message_detail == f"Instance {first} holds it."
    assert (error.schema_name, error.table_name, error.constraint_name) == (caller.schema, "instances", "instances_key")
    assert await caller.one(call, 2, "existing") == first
    assert await caller.row(first, "i.state") == ({"order": 1},)
    assert await caller.one(call, 3, "replace") == first
    assert await caller.row(first, "i.state, i.status") == ({"order": 3}, 0)


async def test_what_was_claimed_is_not_replaced(caller: Caller) -> None:
    """R16: replace is for what has not started; and it inserts where there is nothing."""
    call = "SELECT {s}.insert_instance('Order', '{\"order\": 1}', key => 'k', on_conflict => 'replace')"
    id_ = await caller.one(call)
    await caller.all("UPDATE {s}.instances SET rev = 1")
    assert (await caller.refused(call)).message_detail == f"Instance {id_} holds it."


async def test_many_in_one_call(caller: Caller) -> None:
    """R16: each item is answered for, in the order given; a key that an earlier item has taken is taken."""
    held = await caller.one("SELECT {s}.insert_instance('mail', '{\"to\": \"a\"}', key => 'held')")
    items = [
        {"machine": "Order", "state": {"order": 1}, "key": "z", "priority": 5, "delay": 60, "scope": ["live", "done"]},
        {"machine": "mail", "state": {"to": "a"}, "key": "held"},
        {"machine": "mail", "state": {"to": "b"}, "key": "a", "at": "2100-01-02T03:04:05Z", "queue": None},
        {"machine": "mail", "state": {"to": "c"}, "key": "z"},
        {"machine": "Order", "state": {"order": 1}, "delay": "1 minute", "concurrency_key": "x", "weight": None},
    ]
    rows = await caller.all("SELECT * FROM {s}.insert_instances(%s::jsonb)", json.dumps(items))
    assert [(place, duplicate) for place, _, duplicate in rows] == [
        (1, False), (2, True), (3, False), (4, True), (5, False),
    ]  # fmt: skip
    assert rows[1][1] == held
    assert rows[3][1] == rows[0][1] < rows[2][1] < rows[4][1], "ids in the order given"
    assert await caller.row(rows[0][1], "l.machine, i.priority, i.scope, i.status") == ("Order", 5, 64, 1)
    assert await caller.row(rows[2][1], "l.queue, i.due_at") == ("mails", AT)
    assert await caller.row(rows[4][1], "i.own_gate, i.status") == ("cx", 1)
    assert await caller.all("SELECT * FROM {s}.insert_instances('[]')") == []


# A worker goes on with it -------------------------------------------------------------------------


async def test_a_worker_runs_what_a_transaction_has_inserted_and_signalled(caller: Caller, engine: Engine) -> None:
    """R20, R10: nothing before the commit; at the commit the worker is woken, and goes on to the end."""
    async with engine:
        async with caller.connection.transaction():
            id_ = await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 4}', key => 'o')")
            job_id = await caller.one('SELECT {s}.insert_instance(\'mail\', \'{"to": "x", "copies": 3}\')')
            assert await caller.one("SELECT {s}.signal('o', 'paid', '{\"amount\": 10}')")
            with pytest.raises(NoSuchInstance):
                await engine.get(id_)
        assert await engine.result(id_, timeout=10) == {"order": 4, "paid": [{"amount": 10}], "tags": []}
        assert await engine.result(job_id, timeout=10) == "xxx"


async def test_a_transaction_that_rolls_back_starts_nothing(caller: Caller, engine: Engine) -> None:
    """R20: neither rows nor signals, and nobody is woken for it."""
    parked = await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 1}', key => 'o')")
    before = await caller.counts()
    async with caller.connection.transaction(force_rollback=True):
        await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 4}')")
        await caller.one("SELECT {s}.signal(%s, 'paid')", parked)
        await caller.one("SELECT {s}.signal_or_insert('Order', '{\"order\": 4}', 'p', 'paid')")
        await caller.one("SELECT {s}.cancel(%s)", parked)
    assert await caller.counts() == before


@pytest.mark.parametrize("by", ["id", "key"])
async def test_a_signal_wakes_a_parked_instance(caller: Caller, engine: Engine, by: str) -> None:
    """R10, R11, R12: by id and by key; the same dedup_key is one signal; another name wakes nobody."""
    parked = asyncio.Event()
    engine.on("commit", lambda _: parked.set())
    async with engine:
        handle = await engine.insert(Order(order=1), key="o")
        await asyncio.wait_for(parked.wait(), 10)
        assert (await handle.get()).status == "awaiting_signal"
        target = handle.id if by == "id" else "o"
        call = "SELECT {s}.signal(%s, %s, %s::jsonb, %s)"
        assert await caller.one(call, target, "other", None, "d") is True
        assert await caller.one(call, target, "other", "1", "d") is False
        assert (await handle.get()).status == "awaiting_signal"
        assert await caller.one("SELECT {s}.signal(target => %s, name => 'paid', payload => '7')", target) is True
        assert (await handle.result(timeout=10))["paid"] == [7]
        error = await caller.refused(call, target, "paid", None, None)
        assert error.sqlstate == "P0002"
        assert str(target) in (error.message_primary or "")


async def test_signal_or_insert(caller: Caller, engine: Engine) -> None:
    """R10: the first one starts it with the signal in its inbox, the next one finds it."""
    call = "SELECT {s}.signal_or_insert('Order', '{\"order\": 4}', key => 'o', name => %s, delay => '1 hour')"
    id_ = await caller.one(call, "other")
    assert await caller.one(call, "more") == id_
    assert await caller.row(id_, "i.inbox, i.status, i.key") == (2, 1, "o")
    async with engine:
        two = await caller.one("SELECT {s}.signal_or_insert('Order', '{\"order\": 4}', 'p', 'paid', '5')")
        assert (await engine.result(two, timeout=10))["paid"] == [5]


async def test_signal_or_insert_with_a_reserved_key(caller: Caller, engine: Engine) -> None:
    """R16: the holder has ended, and its scope keeps the key."""
    async with engine:
        handle = await engine.insert(Order(order=1), key="o", scope=("live", "done"))
        await handle.signal("paid")
        await handle.result(timeout=10)
    error = await caller.refused("SELECT {s}.signal_or_insert('Order', '{\"order\": 4}', 'o', 'paid')")
    assert (error.sqlstate, error.message_detail) == ("23505", f"Instance {handle.id} holds it.")


async def test_cancel_and_retry(caller: Caller, engine: Engine) -> None:
    """R16: a cancelled one is brought back, unless another has its key."""
    id_ = await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 4}', key => 'o')")
    assert await caller.one("SELECT {s}.cancel('o', reason => 'no stock')") is True
    assert await caller.one("SELECT {s}.cancel(%s)", id_) is False
    assert await caller.one("SELECT error ->> 'message' FROM {s}.finished") == "no stock"
    await caller.one("SELECT {s}.retry('o')")
    assert await caller.row(id_, "i.status") == (0,)
    await caller.one("SELECT {s}.cancel(target => %s)", id_)
    other = await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 5}', key => 'o')")
    error = await caller.refused("SELECT {s}.retry(%s)", id_)
    assert (error.sqlstate, error.message_detail) == ("23505", f"Instance {other} holds it.")
    assert (await caller.refused("SELECT {s}.retry(%s)", other)).sqlstate == "55000"


async def test_cancel_with_cascade(caller: Caller) -> None:
    """R15: the whole family goes; also that of one that has ended."""
    parent = await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 1}')")
    family = [await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 1}')") for _ in range(3)]
    for child, of in zip(family, [parent, family[0], parent], strict=True):
        await caller.all("UPDATE {s}.instances SET parent_id = %s, parent_spawn = 1 WHERE id = %s", of, child)
    assert await caller.one("SELECT {s}.cancel(%s)", parent) is True
    assert await caller.one("SELECT count(*) FROM {s}.instances") == 3
    assert await caller.one("SELECT {s}.cancel(%s, cascade => true)", parent) is False
    assert await caller.all("SELECT id, status FROM {s}.finished ORDER BY id") == [(i, 8) for i in [parent, *family]]


# Triggers -----------------------------------------------------------------------------------------

TRIGGER = """
CREATE TABLE {s}.shop (id int PRIMARY KEY);
CREATE FUNCTION {s}.start_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {s}.insert_instance('Order', jsonb_build_object('order', NEW.id), key => 'order:' || NEW.id);
    RETURN NEW;
END $$;
CREATE TRIGGER start_order AFTER INSERT ON {s}.shop FOR EACH ROW EXECUTE FUNCTION {s}.start_order();
"""


async def test_a_trigger_starts_instances_with_its_rows(caller: Caller, engine: Engine) -> None:
    """R20: row and instance are there at the commit, or neither; a duplicate key takes the row along."""
    await caller.all(TRIGGER)
    async with engine:
        async with caller.connection.transaction():
            await caller.all("INSERT INTO {s}.shop SELECT generate_series(1, 3)")
        async with caller.connection.transaction(force_rollback=True):
            await caller.all("INSERT INTO {s}.shop VALUES (4)")
        for number in (1, 2, 3):
            await caller.one("SELECT {s}.signal(%s::text, 'paid')", f"order:{number}")
            assert (await engine.result(f"order:{number}", timeout=10))["order"] == number
        with pytest.raises(NoSuchInstance):
            await engine.get("order:4")
    await caller.all("SELECT {s}.insert_instance('Order', '{\"order\": 5}', key => 'order:5')")
    with pytest.raises(psycopg.errors.UniqueViolation, match="order:5"):
        await caller.all("INSERT INTO {s}.shop VALUES (5)")
    assert await caller.one("SELECT count(*) FROM {s}.shop") == 3


# Sessions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["''", "evil, pg_temp, pg_catalog"])
async def test_no_search_path_matters(caller: Caller, path: str) -> None:
    """Nothing is looked up in the caller's search_path, not even an operator."""
    evil = f"{caller.schema}_e"
    await caller.all(f"CREATE SCHEMA {evil}")
    try:
        await caller.all(
            f"CREATE FUNCTION {evil}.jsonb_typeof(jsonb) RETURNS text LANGUAGE sql AS 'SELECT ''evil''';"
            f"CREATE TEMP TABLE instances (id bigint); SET search_path = {path.replace('evil', evil)}"
        )
        id_ = await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 1}', key => 'k')")
        assert await caller.one("SELECT {s}.signal('k', 'paid')") is True
        assert await caller.one("SELECT {s}.signal_or_insert('Order', '{\"order\": 1}', 'k', 'paid')") == id_
        assert (await caller.all('SELECT id FROM {s}.insert_instances(\'[{"machine": "Fixed"}]\')'))[0][0] > id_
        assert await caller.one("SELECT {s}.cancel('k')") is True
        await caller.one("SELECT {s}.retry('k')")
    finally:
        await caller.all(f"RESET search_path; DROP SCHEMA {evil} CASCADE")


async def test_a_serializable_transaction_works_too(caller: Caller, database_url: str) -> None:
    """R20: the server says that the transaction can't go on; no endless loop."""
    call = "SELECT {s}.insert_instance('Order', '{\"order\": 1}', key => 'k', on_conflict => 'existing')"
    await caller.connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        other = Caller(caller.schema, connection)
        async with caller.connection.transaction():
            await caller.one("SELECT 1")  # its snapshot
            await other.one(call)
            with pytest.raises(psycopg.errors.SerializationFailure):
                await caller.one(call)
