"""psycopg's connections, async and blocking. What their user has set for them (row factories, loaders) is not used."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import AsyncConnection, AsyncRawCursor, Connection, RawCursor, postgres
from psycopg.adapt import AdaptersMap
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from gen_durable._store.lending.lent import Lent
from gen_durable._store.operation import Request, Row

__all__ = ["LentAsyncPsycopg", "LentPsycopg"]

# psycopg's own adapters as they are without anybody's changes, global ones too.
_ADAPTERS = AdaptersMap(types=postgres.types)
postgres.register_default_adapters(_ADAPTERS)


class _AsyncCursor(AsyncRawCursor[Row]):
    @property
    def adapters(self) -> AdaptersMap:
        return _ADAPTERS


class _Cursor(RawCursor[Row]):
    @property
    def adapters(self) -> AdaptersMap:
        return _ADAPTERS


def _in_transaction(connection: AsyncConnection[Any] | Connection[Any]) -> bool:
    return not connection.autocommit or connection.info.transaction_status is not TransactionStatus.IDLE


def _is_empty(cursor: _AsyncCursor | _Cursor) -> bool:
    """In a pipeline it is known only after a fetch."""
    return cursor.pgresult is not None and cursor.description is None


def _nothing(error: psycopg.ProgrammingError) -> list[Row]:
    """What a fetch says of a statement that has no rows; what the server says has a number."""
    if error.sqlstate is not None:
        raise error
    return []


class LentAsyncPsycopg(Lent):
    """An ``AsyncConnection``."""

    blocking = False

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection

    async def ready(self) -> object:
        """It is."""
        return self._connection

    @property
    def in_transaction(self) -> bool:
        """Unless it is in autocommit mode and idle: otherwise a statement begins one."""
        return _in_transaction(self._connection)

    async def fetch(self, request: Request) -> list[Row]:
        """Runs one statement."""
        async with _AsyncCursor(self._connection, row_factory=tuple_row) as cursor:
            await cursor.execute(request.statement.text, request.parameters)
            if _is_empty(cursor):
                return []
            try:
                return await cursor.fetchall()
            except psycopg.ProgrammingError as error:
                return _nothing(error)


class LentPsycopg(Lent):
    """A ``Connection``."""

    blocking = True

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection

    async def ready(self) -> object:
        """It is."""
        return self._connection

    @property
    def in_transaction(self) -> bool:
        """Unless it is in autocommit mode and idle: otherwise a statement begins one."""
        return _in_transaction(self._connection)

    async def fetch(self, request: Request) -> list[Row]:
        """Runs one statement."""
        with _Cursor(self._connection, row_factory=tuple_row) as cursor:
            cursor.execute(request.statement.text, request.parameters)
            if _is_empty(cursor):
                return []
            try:
                return cursor.fetchall()
            except psycopg.ProgrammingError as error:
                return _nothing(error)
