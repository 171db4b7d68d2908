"""The schemas of the tests: what one test leaves behind reaches no other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from schema_pool import SchemaPool


@pytest.fixture
def pool(database_url: str) -> Iterator[SchemaPool]:
    made = SchemaPool(database_url)
    yield made
    made.close()


@pytest.mark.parametrize("left", [
    "INSERT INTO {s}.knocks (line) VALUES ('c'); INSERT INTO {s}.queues (name) VALUES ('q')",
    'CREATE TABLE {s}."My Notes" AS SELECT 1 AS one',
])  # fmt: skip
def test_rows_and_tables_go_and_the_schema_is_used_again(pool: SchemaPool, database_url: str, left: str) -> None:
    name = pool.take()
    run(database_url, left.replace("{s}", name))
    pool.give_back(name)
    assert pool.take() == name
    tables = "SELECT relname FROM pg_class WHERE relnamespace = '{s}'::regnamespace AND relkind IN ('r', 'p')"
    found = [table for (table,) in run(database_url, tables.replace("{s}", name))]
    assert "My Notes" not in found
    for table in found:
        assert (run(database_url, f"SELECT 1 FROM {name}.{table} LIMIT 1") == []) is (table != "migrations"), table
    assert run(database_url, f"INSERT INTO {name}.knocks (line) VALUES ('c') RETURNING id") == [(1,)]
    pool.drop(name)


@pytest.mark.parametrize("changed", [
    "CREATE TYPE {s}.mood AS ENUM ('bad')",
    "ALTER SEQUENCE {s}.instances_id_seq INCREMENT BY 7",
    "CREATE VIEW public.over_it AS SELECT id FROM {s}.instances",
    "CREATE STATISTICS {s}.pairs ON id, rev FROM {s}.instances",
    "CREATE PUBLICATION told FOR TABLE {s}.lanes",
    "ALTER TABLE {s}.instances FORCE ROW LEVEL SECURITY",
    "ALTER TABLE {s}.instances SET (fillfactor = 10)",
    "DROP INDEX {s}.instances_ready",
    "CREATE OR REPLACE FUNCTION {s}.ready(line text) RETURNS smallint LANGUAGE sql IMMUTABLE AS 'SELECT 7::smallint'",
    "UPDATE {s}.migrations SET version = version + 100",
    "ANALYZE {s}.instances",
    "INSERT INTO {s}.knocks (line) SELECT repeat('x', 90) FROM generate_series(1, 30000)",
    "DROP SCHEMA {s} CASCADE",
])  # fmt: skip
def test_after_anything_else_it_is_dropped(pool: SchemaPool, database_url: str, changed: str) -> None:
    name = pool.take()
    run(database_url, changed.replace("{s}", name))
    pool.give_back(name)
    other = pool.take()
    assert other != name
    assert run(database_url, f"SELECT to_regnamespace('{name}') IS NULL") == [(True,)]
    pool.give_back(other)
    assert run(database_url, "SELECT to_regclass('public.over_it')") == [(None,)]
    run(database_url, "DROP PUBLICATION IF EXISTS told")


def test_while_somebody_is_connected_it_is_dropped(pool: SchemaPool, database_url: str) -> None:
    name = pool.take()
    with psycopg.connect(database_url):
        pool.give_back(name)
    assert not pool.has(name)


def run(url: str, text: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET client_min_messages = error")
        cursor = connection.execute(text.encode())
        return [] if cursor.description is None else cursor.fetchall()
