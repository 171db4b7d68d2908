"""The functions are the store's statements: how they are made, made anew, printed and restored."""

from __future__ import annotations

import asyncio
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from functions_stage import MACHINES, Caller, make_engine
from psycopg import AsyncConnection
from sql_stage import Connection, Stage

from gen_durable import Engine
from gen_durable._store import functions
from gen_durable._store.migrating import migrate, migration_sql
from gen_durable._store.operation import catalog
from gen_durable.embedded._binaries import find_binaries

SIGNATURES = Path(__file__).with_name("sql_functions.txt")
STATEMENTS = {
    "run_insert": "inserting/insert",
    "run_replace": "inserting/replace",
    "run_holders": "inserting/holders",
    "run_lanes": "queues/lanes",
    "run_send": "signalling/send",
    "run_cancel": "steering/cancel",
    "run_descend": "steering/descend",
    "run_retry": "steering/retry",
}
SHOWN = """
SELECT p.proname || '(' || pg_get_function_arguments(p.oid) || ') ' || pg_get_function_result(p.oid)
FROM pg_proc p WHERE p.pronamespace = '{schema}'::regnamespace
"""
PUBLIC = {"insert_instance", "insert_instances", "signal", "signal_or_insert", "cancel", "retry"}


async def test_what_runs_is_the_statement_word_for_word(stage: Stage) -> None:
    """One truth: text, names and order of the parameters are those of the statement that the client sends."""
    rows = await stage.ask(
        "SELECT proname, prosrc, proargnames[1:pronargs], provolatile, prosecdef FROM pg_proc "
        "WHERE pronamespace = '{schema}'::regnamespace AND proname LIKE 'run%'"
    )
    assert {row[0] for row in rows} == set(STATEMENTS)
    for name, source, parameters, volatile, definer in rows:
        statement = catalog(stage.schema)[STATEMENTS[name]]
        assert source.strip() == statement.text.decode(), name
        assert tuple(parameters) == statement.parameters, name
        assert (volatile, definer) == ("v", False), (
            "each statement in it has a snapshot of its own, and the caller's rights"
        )


async def test_public_functions_run_with_settings_of_their_own(stage: Stage) -> None:
    """The caller's search_path and planner settings don't matter, and its rights do."""
    rows = await stage.ask(
        "SELECT proname, proconfig, prosecdef, provolatile FROM pg_proc WHERE pronamespace = '{schema}'::regnamespace "
        "AND proname = ANY (%s)", list(PUBLIC),
    )  # fmt: skip
    assert {row[0] for row in rows} == PUBLIC
    for name, config, definer, volatile in rows:
        assert "search_path=pg_catalog, pg_temp" in config, name
        assert (definer, volatile) == (False, "v"), name


async def test_a_signature_is_changed_on_purpose_only(stage: Stage) -> None:
    """CREATE OR REPLACE can't change one: the migration that does must drop the old function. Then mend the list."""
    rows = await stage.ask(SHOWN)
    made = set(re.findall(r"FUNCTION \{schema\}\.(\w+)\(", "\n".join(
        path.read_text("utf-8") for path in (Path(functions.__file__).parent / "functions").glob("*.sql")
    )))  # fmt: skip
    shown = sorted(row[0].replace(stage.schema, "{schema}") for row in rows if row[0].partition("(")[0] in made)
    assert "\n".join(shown) + "\n" == SIGNATURES.read_text("utf-8")


async def test_functions_of_another_text_are_made_anew(
    schema: str, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section 11: by migrate alone; once; with grants kept; nothing is written where it is the same."""
    connection: Connection = await connect()
    await migrate(connection, schema)
    stage = Stage(schema, connect, connection)
    marks = (
        "SELECT oid, xmin::text, proacl::text FROM pg_proc WHERE pronamespace = '{schema}'::regnamespace ORDER BY oid"
    )
    await stage.ask("REVOKE EXECUTE ON FUNCTION {schema}.insert_instances FROM PUBLIC")
    before = await stage.ask(marks)
    assert await migrate(connection, schema) == []
    assert await stage.ask(marks) == before
    old = functions.functions_sql(schema)
    monkeypatch.setattr("gen_durable._store.migrating.functions_sql", lambda *_, **__: old.replace("22023", "22022"))
    one, two = await connect(), await connect()
    ran = await asyncio.gather(migrate(one, schema), migrate(two, schema))
    assert sorted(ran) == [[], ["functions"]]
    after = await stage.ask(marks)
    assert [(oid, acl) for oid, _, acl in after] == [(oid, acl) for oid, _, acl in before]
    assert after != before
    assert await stage.value(
        "SELECT prosrc LIKE '%%22022%%' FROM pg_proc WHERE oid = '{schema}.insert_instances'::regproc"
    )


async def test_the_script_makes_the_same_functions(schema: str, connect: Any) -> None:
    """`migrate --sql` prints them too; migrate then finds nothing to do."""
    connection: Connection = await connect()
    await connection.execute(migration_sql(schema).encode(), prepare=False)
    assert await migrate(connection, schema) == []
    rows = await Stage(schema, connect, connection).ask(SHOWN)
    assert {row[0].partition("(")[0] for row in rows} >= PUBLIC


async def test_a_schema_with_a_test_clock_has_its_functions_too(schema: str, connect: Any) -> None:
    """R6: what is due is decided by the schema's clock, from SQL too."""
    connection: Connection = await connect()
    await migrate(connection, schema, test_clock=True)
    assert await migrate(connection, schema) == []
    source = await Stage(schema, connect, connection).value(
        "SELECT prosrc FROM pg_proc WHERE oid = '{schema}.run_insert'::regproc"
    )
    assert f"{schema}.clock()" in source


async def test_a_restored_dump_has_working_functions(caller: Caller, database_url: str, tmp_path: Path) -> None:
    """Section 11: pg_dump and psql alone, under the same name."""
    server = await caller.one("SELECT current_setting('server_version_num')::int / 10000")
    dump = find_binaries() / "pg_dump"
    if (
        not dump.exists()
        or f" {server}." not in subprocess.run([dump, "--version"], capture_output=True, text=True).stdout
    ):
        pytest.skip(f"no pg_dump of version {server} here")
    await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 1}', key => 'k')")
    script = subprocess.run(
        [dump, "--no-owner", "--inserts", f"--schema={caller.schema}", database_url],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    script = "\n".join(line for line in script.splitlines() if not line.startswith("\\"))
    await caller.all("DROP SCHEMA {s} CASCADE")
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(script.encode())
    engine = make_engine(database_url, caller.schema)
    assert await engine.migrate() == []
    async with engine:
        assert await caller.one("SELECT {s}.signal('k', 'paid', '3')") is True
        assert (await engine.result("k", timeout=10))["paid"] == [3]
        assert await caller.one("SELECT {s}.insert_instance('Order', '{\"order\": 1}')") > 1


async def test_two_schemas_do_not_meet(caller: Caller, database_url: str) -> None:
    """Section 11: several engines in one database."""
    other = f"{caller.schema}_b"
    try:
        await Engine(database_url, schema=other, name=other).migrate()
        async with make_engine(database_url, other, *MACHINES[1:], queues={}):
            pass
        mine = Caller(other, caller.connection)
        assert (await mine.refused("SELECT {s}.insert_instance('Order', '{\"order\": 1}')")).sqlstate == "42704"
        assert await mine.one("SELECT {s}.insert_instance('Fixed')") == 1
        assert await caller.one("SELECT count(*) FROM {s}.instances") == 0
    finally:
        await caller.all(f"SET client_min_messages = error; DROP SCHEMA IF EXISTS {other} CASCADE")
