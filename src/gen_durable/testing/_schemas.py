"""Schemas for tests, without an event loop: made, emptied for the next test, dropped."""

from __future__ import annotations

import contextlib
import uuid

import psycopg

from gen_durable._store.connection import open_sync, parse_url
from gen_durable._store.migrating import clean_sql, drop_sql, migration_sql
from gen_durable._store.operation import Row

__all__ = ["Schemas", "empty"]

LOCK_SECONDS = 5  # that a clean waits for what a test has left running


class Schemas:
    """Hands out one schema at a time and takes it back: emptied, it serves the next test.

    Making one takes ten times as long as emptying it. Where something is still running in it, it is dropped instead.
    """

    def __init__(self, url: str) -> None:
        self._url = parse_url(url)
        self._connection: psycopg.Connection[Row] | None = None
        self._spare: str | None = None

    def take(self) -> str:
        """The name of an empty, migrated schema with a clock that tests can move."""
        name, self._spare = self._spare, None
        if name is None:
            name = f"test_{uuid.uuid4().hex[:12]}"
            self._run(migration_sql(name, test_clock=True))
        return name

    def give_back(self, name: str) -> None:
        """The test is over."""
        try:
            self._run(clean_sql(name))
            self._spare = name
        except psycopg.Error:
            self._drop(name)

    def close(self) -> None:
        """Drops what is there."""
        if self._spare is not None:
            self._drop(self._spare)
        if self._connection is not None:
            self._connection.close()

    def _drop(self, name: str) -> None:
        with contextlib.suppress(psycopg.Error):  # something holds on to it: it stays, and is in no test's way
            self._run(drop_sql(name))

    def _run(self, script: str) -> None:
        if self._connection is None or self._connection.closed:
            self._connection = _connect(self._url)
        try:
            self._connection.execute(script.encode())
        except psycopg.Error:
            self._connection.close()  # it may be in the middle of a transaction
            raise


def empty(url: str, schema: str) -> None:
    """Empties a schema for tests.

    Raises:
        psycopg.Error: a worker still runs in it, or it is no schema for tests.
    """
    with _connect(url) as connection:
        connection.execute(clean_sql(schema).encode())


def _connect(url: str) -> psycopg.Connection[Row]:
    connection = open_sync(url, "gen_durable tests")
    connection.execute(
        "SET client_min_messages = error; SET search_path = pg_catalog; "
        f"SET lock_timeout = '{LOCK_SECONDS}s'; SET TimeZone = 'UTC'".encode()
    )
    return connection
