"""House rules of the SQL files, and what a statement may assume of its session."""

from __future__ import annotations

import datetime as dt
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sql_stage import Connection, Stage, outcome

import gen_durable
from gen_durable._store.connection import fetch
from gen_durable._store.migrating import clock_sql, migration_sql, migrations
from gen_durable._store.operation import catalog

ROOT = Path(str(files("gen_durable._store")))
PARTS = sorted((ROOT / "sql/_parts").glob("*.sql"))
SQL = sorted(set((ROOT / "sql").rglob("*.sql")) - set(PARTS))
SCRIPTS = sorted(ROOT.glob("*.sql"))
MIGRATIONS = sorted((ROOT / "migrations").glob("*.sql"))
FUNCTIONS = sorted((ROOT / "functions").glob("*.sql"))
LONGEST = 130


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def header_of(text: str) -> list[str]:
    lines = text.splitlines()
    end = next(n for n, line in enumerate(lines) if not line.startswith("--"))
    return lines[:end]


def body_of(text: str) -> str:
    """What the server reads: without comments."""
    return re.sub(r"--[^\n]*", "", text)


@pytest.mark.parametrize("path", SQL, ids=name_of)
def test_a_statement_says_what_it_is_for_what_it_locks_and_what_serves_it(path: Path) -> None:
    text = path.read_text("utf-8")
    header = header_of(text)
    shown = "\n".join(header)
    assert re.match(r"-- [A-Z].*[.:]$", header[0]) or header[1].startswith("--"), "first what it is for"
    assert "-- Locks:" in shown
    assert ("-- Parameters:" in shown) == ("%(" in body_of(text)), "Parameters, where it has any"
    for parameter in sorted(set(re.findall(r"%\((\w+)\)s", body_of(text)))):
        assert re.search(rf"\b{parameter}\b", shown), f"{parameter} is not explained"
    if re.search(r"\b(FROM|JOIN|UPDATE|INTO) \{schema\}\.(?!\w+\()", body_of(text)):
        assert "-- Index:" in shown, "Index, where it touches a table"
    assert all(len(line) <= LONGEST for line in text.splitlines())


@pytest.mark.parametrize("path", [*SQL, *PARTS], ids=name_of)
def test_a_parameter_is_never_inside_quotes_and_always_typed(path: Path) -> None:
    """In quotes it would silently become text; without a cast its type would hang on where it first stands."""
    body = body_of(path.read_text("utf-8"))
    outside = re.sub(r"'(?:[^']|'')*'", "''", body)
    assert outside.count("%(") == body.count("%("), "a parameter is inside quotes"
    for match in re.finditer(r"%\(\w+\)s(.{0,2})", outside):
        assert match[1] == "::", f"{match[0]} has no cast"


def test_every_part_says_what_it_is_and_is_a_part_of_several_statements() -> None:
    texts = [path.read_text("utf-8") for path in SQL]
    for path in PARTS:
        assert path.read_text("utf-8").startswith("-- ")
        assert sum(f"{{part {path.stem}}}" in text for text in texts) > 1, path.name
    assert {name for text in texts for name in re.findall(r"\{part (.*?)\}", text)} == {path.stem for path in PARTS}


@pytest.mark.parametrize("path", [*SQL, *PARTS, *SCRIPTS, *MIGRATIONS, *FUNCTIONS], ids=lambda path: path.stem)
def test_every_table_is_named_with_its_schema(path: Path) -> None:
    body = re.sub(r"'(?:[^']|'')*'", "''", body_of(path.read_text("utf-8")))
    made = re.findall(r"CREATE (?:OR REPLACE )?(?:TABLE|VIEW|FUNCTION)\s+(?!\{schema\})(\S+)", body)
    assert made == []
    ours = r"(?:lanes|queues|workers|instances|finished\w*|transitions\w*|schedules|schedule_runs|all_instances"
    ours += "|migrations|limits|lines|knocks|machines)"
    for match in re.finditer(rf"\b(?:FROM|JOIN|UPDATE|INTO|TABLE|OF|LIKE|ON)\s+({ours})\b(?!\s*\()", body):
        local = re.search(rf"\b{match[1]}\s+(?:AS\s+(?:NOT\s+)?(?:MATERIALIZED\s+)?\()", body)
        assert local, f"{match[0]!r} has no schema"


def test_every_file_is_used_and_every_name_exists() -> None:
    sources = "\n".join(path.read_text("utf-8") for path in Path(gen_durable.__file__).parent.rglob("*.py"))
    used = set(re.findall(r"""sql(?:\(\w+\))?\[["'](\w+/\w+)["']\]""", sources))
    used |= set(re.findall(r"""catalog\([^)]*\)\[["'](\w+/\w+)["']\]""", sources))
    assert used == {name_of(path) for path in SQL} == set(catalog("any"))


def test_sql_is_in_sql_files_only() -> None:
    """Apart from the migrating module, which must speak before there is a schema, and the session's set-up."""
    allowed = {"migrating.py", "connection.py"}
    for path in Path(gen_durable.__file__).parent.rglob("*.py"):
        if path.name not in allowed and "embedded" not in path.parts:
            found = re.findall(
                r"[\"'](?:SELECT|INSERT|UPDATE|DELETE|WITH|CREATE|DROP|ALTER)\s", path.read_text("utf-8")
            )
            assert not found, f"{path.name}: {found}"


def test_a_statement_is_the_same_text_for_any_values() -> None:
    for statement in catalog("some_schema").values():
        text = statement.text.decode()
        assert "{" not in re.sub(r"'(?:[^']|'')*'", "", text), statement.name
        assert "%(" not in text
        assert [int(n) for n in sorted(set(re.findall(r"\$(\d+)", text)), key=int)] == list(
            range(1, len(statement.parameters) + 1)
        )


def test_the_script_form_of_a_migration_is_the_same_sql() -> None:
    script = migration_sql("some_schema")
    assert script.startswith("BEGIN;")
    assert script.rstrip().endswith("COMMIT;")
    for migration in migrations("some_schema"):
        assert migration.sql in script


async def test_the_script_form_makes_a_schema_that_works(schema: str, connect: Any) -> None:
    connection: Connection = await connect()
    await connection.execute("SET search_path = pg_catalog", prepare=False)
    await connection.execute(migration_sql(schema).encode(), prepare=False)
    stage = Stage(schema, connect, connection)
    lane = await stage.lane()
    await stage.insert({"lane": lane})
    assert len(await stage.claim((lane, 0, 1))) == 1


async def test_every_statement_runs_with_an_empty_search_path(stage: Stage) -> None:
    """Whatever the user's search_path holds, no name of ours is looked up in it."""
    connection = await stage.connect()
    await stage.ask("SET search_path = ''", on=connection)
    values: dict[str, Any] = {
        "worker": 7, "wants": "[]", "claims": "[]", "outcomes": "[]", "wake": [], "ids": "[1]", "keys": '["k"]',
        "rows": "[]", "notify": True, "soon": 1.0, "batch": 10, "queues": ["q"], "queue": "q", "paused": True,
        "messages": ["t:"], "lanes": "[]", "id": 1, "key": "k", "before": None, "machine": None, "statuses": None,
        "key_prefix": None, "limit": 1, "locked": False, "lease": 15.0, "grace": 1.0, "keep": True, "name": "n",
        "host": "h", "pid": 1, "lock": False, "turns": "[]", "schedules": [], "occurrences": [], "instances": [],
        "rev": 0, "next_at": None, "cron": "* * * * *", "every": None, "tz": "UTC", "catch_up": "last", "lane": 1,
        "priority": 0, "step": "s", "state": "{}", "time_field": None, "made_at": dt.datetime.now(dt.UTC),
        "seconds": 0.0, "until": None, "limits": "[]", "kind": "concurrency", "amount": 1.0, "kinds": ["rate"],
        "names": ["n"], "most": 10, "shown": 1,
    }  # fmt: skip
    arrays: dict[str, Any] = {
        "claiming/left": {"lanes": [1]},
        "testing/due": {"lanes": [1]},
        "signalling/send": {"lanes": [1]},
        "workers/register": {"lanes": [1], "queues": "{}"},
        "workers/heartbeat": {"lanes": [1]},
        "pruning/runs": {"keep": 1.0},
        "committing/end_alone": {"keep": 1.0},
        "committing/go_on_alone": {"kind": 0},
        "transacting/session": {"names": ["jit"], "values": ["off"]},
    }
    await stage.ask(clock_sql(stage.schema))  # else there is nothing to advance
    for name, statement in stage.sql.items():
        given = values | arrays.get(name, {})
        await fetch(connection, statement.bind(**{key: given.get(key) for key in statement.parameters}))


async def test_a_session_of_the_engine_bounds_its_waits(stage: Stage) -> None:
    """R27: no lock and no statement of ours waits or stays for ever."""
    for name in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "tcp_keepalives_idle"):
        value = await stage.value("SELECT current_setting(%s)", name)
        assert value not in ("0", ""), name
    assert await stage.value("SELECT current_setting('plan_cache_mode')") == "force_generic_plan"
    assert await stage.value("SELECT current_setting('search_path')") == "pg_catalog"


@pytest.mark.parametrize(
    "text",
    [
        "UPDATE {schema}.instances SET status = 6",
        "UPDATE {schema}.instances SET status = 2",
        "UPDATE {schema}.instances SET worker = 1",
        "UPDATE {schema}.finished SET status = 5",
        "UPDATE {schema}.instances SET key = 'k'",
    ],
)
async def test_the_tables_refuse_what_can_not_be(stage: Stage, text: str) -> None:
    lane = await stage.lane()
    await stage.insert({"lane": lane}, {"lane": lane})
    ((id_, rev, *_),) = await stage.claim((lane, 0, 1))
    await stage.commit(outcome(id_, rev, 2))
    await stage.insert({"lane": lane})
    with pytest.raises(psycopg.IntegrityError):
        await stage.ask(text)
