"""Migrations: versioned, forward-only, safe to run twice and from several processes at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files

import psycopg
from psycopg import AsyncConnection

from gen_durable._store.connection import fetch
from gen_durable._store.operation import Request, Row, catalog, check_schema_name, render, tokens
from gen_durable.errors import ConfigurationError, SchemaMissing, SchemaVersionError

__all__ = [
    "Migration",
    "check_version",
    "clean_sql",
    "clock_sql",
    "drop_sql",
    "latest_version",
    "migrate",
    "migration_sql",
    "migrations",
]


@dataclass(frozen=True, slots=True)
class Migration:
    """One migration: its number, its name and its SQL for a schema."""

    version: int
    name: str
    sql: str


def migrations(schema: str, *, test_clock: bool = False) -> list[Migration]:
    """All migrations, in order, rendered for a schema and for the clock that it has.

    Raises:
        ConfigurationError: when the schema's name can't be used.
    """
    check_schema_name(schema)
    found = sorted(
        (entry for entry in (files("gen_durable._store") / "migrations").iterdir() if entry.name.endswith(".sql")),
        key=lambda entry: entry.name,
    )
    return [
        Migration(int(file.name[:4]), file.name[:-4], render(file.read_text("utf-8"), schema, test_clock=test_clock))
        for file in found
    ]


def latest_version() -> int:
    """The schema version that this package works with."""
    return migrations("gen_durable")[-1].version


def _prologue(schema: str) -> str:
    return render(
        # Asked for first: "IF NOT EXISTS" needs the right to create schemas even where there is nothing to create.
        "DO $$ BEGIN\n"
        "    IF to_regnamespace('{schema}') IS NULL THEN CREATE SCHEMA {schema}; END IF;\n"
        "END $$;\n"
        "CREATE TABLE IF NOT EXISTS {schema}.migrations (\n"
        "    version int PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now()\n"
        ");\n",
        schema,
    )


def _record(migration: Migration, schema: str) -> str:
    return render(
        f"INSERT INTO {{schema}}.migrations (version, name) VALUES ({migration.version}, '{migration.name}');\n", schema
    )


def _script(name: str, schema: str) -> str:
    return render((files("gen_durable._store") / name).read_text("utf-8"), schema)


def clock_sql(schema: str) -> str:
    """The SQL that makes the clock of a schema for tests: before its migrations."""
    return _script("test_clock.sql", schema)


def clean_sql(schema: str) -> str:
    """The SQL that empties a schema for tests."""
    return _script("test_clean.sql", schema)


def drop_sql(schema: str) -> str:
    """The SQL that drops a schema for tests, if it is there."""
    return render("DROP SCHEMA IF EXISTS {schema} CASCADE;\n", schema)


def migration_sql(schema: str, after: int = 0, *, test_clock: bool = False) -> str:
    """The SQL of every migration above ``after``, as one script with its own transaction.

    With ``test_clock`` it makes a schema whose clock tests can move; then ``after`` must be 0.
    """
    parts = ["BEGIN;\n", f"SELECT pg_advisory_xact_lock({tokens(schema)['{lockspace}']}, 2);\n", _prologue(schema)]
    if test_clock:
        parts.append(clock_sql(schema))
    for migration in migrations(schema, test_clock=test_clock):
        if migration.version > after:
            parts += [f"\n-- {migration.name}\n", migration.sql, "\n", _record(migration, schema)]
    return "".join([*parts, render("SELECT {schema}.ensure_partitions();\n", schema), "COMMIT;\n"])


async def migrate(connection: AsyncConnection[Row], schema: str, *, test_clock: bool = False) -> list[str]:
    """Brings a schema to this package's version; answers with the names of the migrations that it ran.

    All in one transaction under an advisory lock: a second process waits, then finds nothing to do. A schema keeps the
    clock that it was made with.

    Args:
        test_clock: make it with a clock that tests can move.

    Raises:
        SchemaVersionError: when the schema is newer than this package.
        ConfigurationError: a test clock is wanted, and the schema was made without.
    """
    ran: list[str] = []
    async with connection.transaction():
        await connection.execute(
            "SELECT pg_advisory_xact_lock(%s, 2)", (int(tokens(schema)["{lockspace}"]),), prepare=False
        )
        # Asked for, not "IF NOT EXISTS" alone: that writes a notice, and needs the right to create a schema.
        cursor = await connection.execute(
            "SELECT to_regclass(%s) IS NOT NULL", (f"{schema}.migrations",), prepare=False
        )
        row = await cursor.fetchone()
        if row is None or not row[0]:
            await connection.execute(_prologue(schema).encode(), prepare=False)
        cursor = await connection.execute(
            f"SELECT coalesce(max(version), 0) FROM {schema}.migrations".encode(), prepare=False
        )
        row = await cursor.fetchone()
        current = row[0] if row else 0
        if current > latest_version():
            raise SchemaVersionError(
                f"schema {schema!r} is at version {current}, newer than this package's {latest_version()}: "
                "upgrade gen-durable"
            )
        if test_clock and not current:
            await connection.execute(clock_sql(schema).encode(), prepare=False)
        cursor = await connection.execute(
            "SELECT to_regprocedure(%s) IS NOT NULL", (f"{schema}.clock()",), prepare=False
        )
        row = await cursor.fetchone()
        has_test_clock = bool(row and row[0])
        if test_clock and not has_test_clock:
            raise ConfigurationError(
                f"schema {schema!r} was made without a test clock, and that can't be changed: "
                "give the tests a schema= of their own"
            )
        for migration in migrations(schema, test_clock=has_test_clock):
            if migration.version > current:
                await connection.execute(migration.sql.encode(), prepare=False)
                await connection.execute(_record(migration, schema).encode(), prepare=False)
                ran.append(migration.name)
    await fetch(connection, catalog(schema)["pruning/ensure"].bind())
    return ran


async def check_version(ask: Callable[[Request], Awaitable[list[Row]]], schema: str) -> bool:
    """Refuses a schema that is not at this package's version; answers whether it has a test clock.

    Args:
        ask: runs one statement.
        schema: the schema.

    Raises:
        SchemaMissing: when it was never migrated.
        SchemaVersionError: when it is older or newer.
    """
    try:
        rows = await ask(catalog(schema)["workers/version"].bind())
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        raise SchemaMissing(
            f"the database has no gen_durable schema {schema!r}: run `gen-durable migrate --schema {schema}` "
            "(or `await engine.migrate()`)"
        ) from None
    current, wanted = rows[0][0] or 0, latest_version()
    test_clock: bool = rows[0][1]
    if current < wanted:
        raise SchemaVersionError(
            f"schema {schema!r} is at version {current}, this package needs {wanted}: "
            f"run `gen-durable migrate --schema {schema}`"
        )
    if current > wanted:
        raise SchemaVersionError(
            f"schema {schema!r} is at version {current}, newer than this package's {wanted}: upgrade gen-durable"
        )
    return test_clock
