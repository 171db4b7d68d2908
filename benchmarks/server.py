"""The Postgres server of a run: a throw-away one, or one that the user names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from benchmarks.cpu import tree_seconds
from gen_durable import embedded

SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "max_connections": "200",
    "synchronous_commit": "on",
    "fsync": "on",
}
"""Durability on; checkpoints kept out of the timed parts. The same for every engine."""


class Server:
    """Databases, statistics and CPU of one server."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._admin = psycopg.connect(self.url("postgres"), autocommit=True)
        self.version = str(self._value("SHOW server_version")).split()[0]
        self._postmaster = self._find_postmaster()

    def describe(self) -> str:
        """Version and the two settings that decide what a commit costs."""
        fsync, synchronous = self._value("SHOW fsync"), self._value("SHOW synchronous_commit")
        return f"PostgreSQL {self.version}, fsync={fsync}, synchronous_commit={synchronous}"

    def close(self) -> None:
        self._admin.close()

    def url(self, database: str) -> str:
        """The URL of one database of this server."""
        return urlunsplit(urlsplit(self._url)._replace(path=f"/{database}"))

    def recreate(self, database: str, template: str | None = None) -> str:
        """An empty database of that name, or a copy of another one of this server; its URL."""
        self.drop(database)
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database))
        if template is not None:
            # By files: written to the log block by block, a large one would take long and fill the log.
            copied = sql.SQL(" TEMPLATE {} STRATEGY file_copy").format(sql.Identifier(template))
            statement += copied
        self._admin.execute(statement)
        return self.url(database)

    def drop(self, database: str) -> None:
        name = sql.Identifier(database)
        self._admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))

    def size(self, database: str) -> int:
        """Bytes of a database's files."""
        return int(self._value("SELECT pg_database_size(%s)", database))

    def wal(self) -> int:
        """Bytes of WAL written so far, by anybody."""
        return int(self._value("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))

    def commits(self, database: str) -> int:
        """Transactions of a database; exact once the sessions that made them have ended."""
        statement = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s"
        return int(self._value(statement, database))

    def cpu(self) -> float | None:
        """CPU seconds of the server's processes so far; None where they can't be seen from here."""
        return tree_seconds(self._postmaster) if self._postmaster else None

    def _value(self, statement: LiteralString, *parameters: object) -> Any:
        row = self._admin.execute(statement, parameters).fetchone()
        assert row is not None
        return row[0]

    def _find_postmaster(self) -> int | None:
        try:
            folder = Path(str(self._value("SHOW data_directory")))
            return int((folder / "postmaster.pid").read_text().splitlines()[0])
        except (OSError, ValueError, psycopg.Error):
            return None


@contextmanager
def running(url: str | None) -> Iterator[Server]:
    """The server at ``url``, or a throw-away one that ends with the run."""
    if url is None:
        with embedded.temporary(settings=SETTINGS) as own:
            yield from _connected(own)
    else:
        yield from _connected(url)


def _connected(url: str) -> Iterator[Server]:
    server = Server(url)
    try:
        yield server
    finally:
        server.close()
