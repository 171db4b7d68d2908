"""What the SQL functions refuse: each bad argument with its SQLSTATE, nothing half-written; and whom they let in."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from functions_stage import Caller, mail, make_engine
from psycopg import AsyncConnection

from gen_durable import Done, Engine, Machine, step
from gen_durable.context import Context
from gen_durable.errors import InstanceFailed

LONG = "'" + "x" * 513 + "'"

BAD_INSERTS = [
    # arguments, SQLSTATE, what the message names, what the hint says
    ("NULL", "22004", "machine is null", "Give machine"),
    ("''", "22023", "machine '' has 0 bytes", "1 to 512"),
    ("'Nobody'", "42704", "no engine has registered a machine 'Nobody'", "machines="),
    ("'Order', version => 3", "42704", "'Order' of version 3", "machines="),
    ("'Order', version => 0", "22023", "version is 0", "from 1 to"),
    ("'Order', NULL", "22023", "the state of Order is null", "JSON object"),
    ("'Order', '[1]'", "22023", "the state of Order is [1]", "JSON object"),
    ("'Order', '{}'", "22023", "the field 'order' of Order is missing", "Give it"),
    ("'Order', '{\"order\": 1, \"ordr\": 2}'", "22023", "Order has no field 'ordr'", "note, order, tags"),
    ("'Order', '{\"order\": \"1\"}'", "22023", "the field 'order' of Order is \"1\"", "stored as number"),
    ("'Order', '{\"order\": 1, \"tags\": {}}'", "22023", "the field 'tags' of Order is {}", "stored as array"),
    (
        "'mail', jsonb_build_object('to', repeat('x', 1048577))",
        "54000",
        "the state of mail has 1048587 bytes, more than 1048576",
        "max_state_bytes",
    ),
    ("'mail', '{\"to\": \"a\"}', key => ''", "22023", "key '' has 0 bytes", "1 to 512"),
    (f"'mail', '{{\"to\": \"a\"}}', key => {LONG}", "22023", "has 513 bytes", "1 to 512"),
    ("'mail', '{\"to\": \"a\"}', queue => 'nowhere'", "42704", "there is no queue 'nowhere'", "queues="),
    ("'mail', '{\"to\": \"a\"}', priority => 32768", "22023", "priority is 32768", "-32768 to 32767"),
    ("'mail', '{\"to\": \"a\"}', delay => '-1 second'", "22023", "delay is", "at least 0"),
    ("'mail', '{\"to\": \"a\"}', delay => '200 years'", "22023", "delay is 200 years", "at most 100 years"),
    ("'mail', '{\"to\": \"a\"}', at => 'infinity'", "22023", "at 'infinity'", "2030"),
    ("'mail', '{\"to\": \"a\"}', at => '9999-01-01Z'", "22023", "out of range", "1900 to 9000"),
    ("'mail', '{\"to\": \"a\"}', at => now(), delay => '1 s'", "22023", "were both given", "one of them"),
    ("'mail', '{\"to\": \"a\"}', scope => '{live}'", "22023", "without a key", "give key too"),
    ("'mail', '{\"to\": \"a\"}', key => 'k', scope => '{done}'", "22023", "scope is {done}", "add live"),
    ("'mail', '{\"to\": \"a\"}', key => 'k', scope => '{live,dead}'", "22023", "scope has 'dead'", "cancelled"),
    ("'mail', '{\"to\": \"a\"}', on_conflict => 'ignore'", "22023", "on_conflict is 'ignore'", "existing"),
    ("'mail', '{\"to\": \"a\"}', on_conflict => 'replace'", "22023", "without a key", "what would it replace"),
    ("'mail', '{\"to\": \"a\"}', concurrency_partition => 'a'", "22023", "no name", "Give concurrency_key too"),
    ("'mail', '{\"to\": \"a\"}', concurrency_key => E'a\\x1fb'", "22023", "character \\x1f", "remove it"),
    ("'mail', '{\"to\": \"a\"}', rate_limit => 'nothing'", "42704", "no rate limit 'nothing'", "rate_limits="),
    ("'mail', '{\"to\": \"a\"}', rate_limit => 'mail', weight => 11", "22023", "weight is 11", "smaller weight"),
    ("'mail', '{\"to\": \"a\"}', weight => 2", "22023", "weight is 2, without a rate limit", "Give rate_limit"),
    ("'mail', '{\"to\": \"a\"}', rate_limit => 'mail', weight => 0", "22023", "weight is 0", "from 1"),
    ("'Closed'", "0A000", "the first step of Closed, start, computes", "on the class"),
    ("'Tenant', '{\"tenant\": \"a\"}'", "22023", "Tenant computes its concurrency_key", "Give concurrency_key"),
    ("'Tenant', '{\"tenant\": \"a\"}', concurrency_key => 'a'", "22023", "computes its rate_limit", "Give rate_limit"),
    (
        "'Tenant', '{\"tenant\": \"a\"}', concurrency_key => 'a', rate_limit => 'mail'",
        "22023",
        "computes its weight",
        "Give weight",
    ),
]


@pytest.mark.parametrize(("arguments", "state", "names", "mend"), BAD_INSERTS, ids=lambda value: str(value)[:60])
async def test_a_bad_insert_is_refused(caller: Caller, arguments: str, state: str, names: str, mend: str) -> None:
    """Section 14: the message names the value, the hint the mend; nothing is written."""
    error = await caller.refused(f"SELECT {{s}}.insert_instance({arguments})")
    assert error.sqlstate == state, error.message_primary
    assert names in (error.message_primary or "")
    assert mend in (error.message_hint or "")


@pytest.mark.parametrize(
    ("items", "state", "names", "place"),
    [
        ("null", "22023", "rows is null", None),
        ({}, "22023", "rows is {}", None),
        ([1], "22023", "an item is 1", 1),
        ([{"machine": "Fixed"}, {"machine": "Nobody"}], "42704", "'Nobody'", 2),
        ([{"machine": "Fixed", "prio": 1}], "22023", "an item has no 'prio'", 1),
        ([{"machine": "Fixed", "priority": "1"}], "22023", 'priority is "1"', 1),
        ([{"machine": "Fixed", "priority": 1.5}], "22023", "priority is 1.5", 1),
        ([{"machine": "Fixed"}, {"machine": "Fixed", "at": "2100-01-01T00:00:00"}], "22023", "no offset", 2),
        ([{"machine": "Fixed", "at": "tomorrowZ"}], "22023", "at 'tomorrowZ'", 1),
        ([{"machine": "Fixed", "delay": "soon"}], "22007", '"soon"', 1),
        ([{"machine": "Fixed", "delay": -1}], "22023", "delay is -1", 1),
        ([{"machine": "Fixed", "key": "k", "scope": "live"}], "22023", 'scope is "live"', 1),
        ([{"state": {}}], "22004", "machine is null", 1),
    ],
)  # fmt: skip
async def test_bad_items_are_refused(caller: Caller, items: Any, state: str, names: str, place: int | None) -> None:
    """Section 14: the place of the bad one is in the detail; none of the others is inserted."""
    text = None if items == "null" else json.dumps(items)
    error = await caller.refused("SELECT * FROM {s}.insert_instances(%s::jsonb)", text)
    assert error.sqlstate == state
    assert names in (error.message_primary or "")
    assert ("" if place is None else f"It is item {place}.") in (error.message_detail or "")
    assert error.message_hint


@pytest.mark.parametrize(
    ("call", "state", "names"),
    [
        ("signal(NULL, 'paid')", "22004", "target is null"),
        ("signal('', 'paid')", "22023", "target '' has 0 bytes"),
        ("signal('nobody', 'paid')", "P0002", "there is no live instance 'nobody'"),
        ("signal(77, 'paid')", "P0002", "there is no live instance 77"),
        ("signal('k', NULL)", "22004", "name is null"),
        (f"signal('k', {LONG})", "22023", "has 513 bytes"),
        ("signal('k', 'paid', dedup_key => '')", "22023", "dedup_key '' has 0 bytes"),
        ("signal('k', 'paid', to_jsonb(repeat('x', 1048577)))", "54000", "'paid' has 1048579 bytes"),
        ("signal_or_insert('Order', '{\"order\": 1}', NULL, 'paid')", "22004", "key is null"),
        ("signal_or_insert('Order', '{\"order\": 1}', 'new', '')", "22023", "name '' has 0 bytes"),
        ("signal_or_insert('Order', '{}', 'new', 'paid')", "22023", "the field 'order'"),
        ("cancel('nobody')", "P0002", "there is no instance 'nobody'"),
        ("cancel(77)", "P0002", "there is no instance 77"),
        ("cancel('k', cascade => NULL)", "22004", "cascade is null"),
        ("cancel('k', reason => '')", "22023", "reason '' has 0 bytes"),
        ("retry('nobody')", "P0002", "there is no instance 'nobody'"),
        ("retry('k')", "55000", "is runnable"),
    ],
)  # fmt: skip
async def test_a_bad_call_is_refused(caller: Caller, call: str, state: str, names: str) -> None:
    """Section 14, R12: nothing is stored."""
    await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 1}', key => 'k')")
    error = await caller.refused(f"SELECT {{s}}.{call}")
    assert error.sqlstate == state, error.message_primary
    assert names in (error.message_primary or "")
    assert error.message_hint


async def test_nobody_has_registered_anything(migrated: str, database_url: str) -> None:
    """R9: a clear error, that says what is to be started."""
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        error = await Caller(migrated, connection).refused("SELECT {s}.insert_instance('Order')")
    assert error.sqlstate == "42704"
    assert error.message_detail == "Registered are none."


class Dated(Machine, name="Dated"):
    when: int

    @step
    async def start(self, ctx: Context) -> Done:
        return Done(self.when)


async def test_what_only_python_can_refuse_fails_the_instance(caller: Caller, database_url: str) -> None:
    """R9: a state that does not decode is not lost: it fails with the decode error."""
    engine: Engine = make_engine(database_url, caller.schema, Dated)
    async with engine:
        id_ = await caller.one("SELECT {s}.insert_instance('Dated', '{\"when\": 1.5}')")
        with pytest.raises(InstanceFailed, match="does not fit its fields"):
            await engine.result(id_, timeout=10)


# Who may ------------------------------------------------------------------------------------------

GRANTS = """
GRANT USAGE ON SCHEMA {s} TO {role};
GRANT SELECT ON ALL TABLES IN SCHEMA {s} TO {role};
GRANT INSERT ON {s}.instances, {s}.signals, {s}.knocks, {s}.queues, {s}.lanes TO {role};
GRANT UPDATE ON {s}.instances, {s}.queues, {s}.lanes TO {role};
GRANT USAGE ON ALL SEQUENCES IN SCHEMA {s} TO {role};
"""

WRAPPER = """
CREATE FUNCTION {s}_app.start_order(number int) RETURNS bigint LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT {s}.insert_instance('Order', jsonb_build_object('order', number));
END;
REVOKE EXECUTE ON FUNCTION {s}_app.start_order FROM PUBLIC;
GRANT USAGE ON SCHEMA {s}_app TO {role};
GRANT EXECUTE ON FUNCTION {s}_app.start_order TO {role};
"""


@pytest.fixture
async def role(caller: Caller) -> Any:
    """A role that may do nothing."""
    name = f"{caller.schema}_r"
    if not await caller.one("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"):
        pytest.skip("this database's user may not make roles")
    await caller.all(f"CREATE ROLE {name}; CREATE SCHEMA {caller.schema}_app")
    yield name
    await caller.all(f"RESET ROLE; DROP SCHEMA {caller.schema}_app CASCADE; DROP OWNED BY {name}; DROP ROLE {name}")


async def test_what_a_role_needs(caller: Caller, role: str) -> None:
    """The grants of the guide are enough to insert and to signal, and less are not; the functions lend no rights."""
    await caller.all(f"SET ROLE {role}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 1}')")
    await caller.all("RESET ROLE")
    await caller.all(GRANTS.replace("{role}", role))
    await caller.all(f"SET ROLE {role}")
    id_ = await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 1}', key => 'k', concurrency_key => 'c')")
    assert await caller.one("SELECT {s}.signal('k', 'paid', '1')") is True
    assert await caller.one("SELECT {s}.signal_or_insert('Order', '{\"order\": 1}', 'k', 'paid')") == id_
    assert await caller.one("SELECT {s}.signal_or_insert('Fixed', '{}', 'new', 'paid')") > id_
    replace = "SELECT {s}.insert_instance('Fixed', key => 'r', on_conflict => 'replace')"
    assert await caller.one(replace) == await caller.one(replace)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await caller.one("SELECT {s}.cancel('k')")


async def test_a_role_that_may_only_call_a_wrapper(caller: Caller, role: str) -> None:
    """The recipe of the guide: one call, with the rights of its owner."""
    await caller.all(WRAPPER.replace("{role}", role))
    await caller.all(f"SET ROLE {role}")
    assert await caller.one("SELECT {s}_app.start_order(7)") > 0
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 1}')")


async def test_an_engine_without_the_right_to_register_starts_all_the_same(
    caller: Caller, role: str, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """R9: a client of a role that may not write the table; another engine has registered its machines."""
    await caller.all(f"ALTER ROLE {role} LOGIN PASSWORD 'x'")
    await caller.all(GRANTS.replace("{role}", role))
    url = psycopg.conninfo.make_conninfo(database_url, user=role, password="x")
    async with make_engine(url, caller.schema, queues={}, rate_limits={}) as engine:
        assert (await engine.insert(mail.bind(to="a"))).id > 0
    assert "machines are not registered" in caplog.text
