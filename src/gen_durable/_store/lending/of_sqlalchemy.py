"""SQLAlchemy's sessions and connections. Everything goes through SQLAlchemy, which begins transactions when it sees a
statement: the driver's connection is never used behind its back."""

from __future__ import annotations

from typing import Any

from gen_durable._store.lending.lent import Lent, rows_of
from gen_durable._store.operation import Request, Row
from gen_durable._store.rendering import WHOLE, Rendered, dollar, named
from gen_durable.errors import InvalidArgument

__all__ = ["LentAsyncSqlalchemy", "LentSqlalchemy", "LentSqlalchemySession"]

_NAMED = ("psycopg", "psycopg2")  # drivers with ``%(name)s``


def _check_dialect(connection: Any) -> None:
    dialect = connection.dialect
    if dialect.name != "postgresql" or dialect.driver not in (*_NAMED, "psycopg_async", "asyncpg"):
        raise InvalidArgument(
            f"conn= is of SQLAlchemy's {dialect.name}+{dialect.driver}: it must be a connection to the engine's "
            "Postgres over psycopg, psycopg2 or asyncpg"
        )


def _autocommits(connection: Any) -> bool:
    driver = connection.connection.dbapi_connection
    if not driver.autocommit:
        return False
    raw = connection.connection.driver_connection
    if hasattr(raw, "is_in_transaction"):
        return not raw.is_in_transaction()
    if hasattr(raw, "get_transaction_status"):
        return not raw.get_transaction_status()
    return not raw.info.transaction_status


def _rendered(connection: Any, request: Request) -> Rendered:
    return dollar(request) if connection.dialect.driver == "asyncpg" else named(request)


class LentSqlalchemy(Lent):
    """A ``Connection``."""

    blocking = True

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def ready(self) -> object:
        """Once the library has begun its transaction."""
        _check_dialect(self._connection)
        return self._connection.connection.driver_connection

    @property
    def in_transaction(self) -> bool:
        """Always, but for the isolation level AUTOCOMMIT."""
        return not _autocommits(self._connection)

    async def fetch(self, request: Request) -> list[Row]:
        """Runs one statement."""
        result = self._connection.exec_driver_sql(*_rendered(self._connection, request), execution_options=WHOLE)
        return rows_of(result.fetchall()) if result.returns_rows else []


class LentSqlalchemySession(LentSqlalchemy):
    """A ``Session``, whose transaction has one connection."""

    def __init__(self, session: Any) -> None:
        super().__init__(None)
        self._session = session

    async def ready(self) -> object:
        """Has the session begin its transaction, if it has not."""
        self._connection = self._session.connection()
        return await super().ready()


class LentAsyncSqlalchemy(Lent):
    """An ``AsyncSession`` or ``AsyncConnection``."""

    blocking = False

    def __init__(self, connection: Any, *, session: bool) -> None:
        self._given = connection
        self._session = session
        self._connection: Any = None

    async def ready(self) -> object:
        """Has a session begin its transaction, if it has not."""
        self._connection = await self._given.connection() if self._session else self._given
        _check_dialect(self._connection)
        return self._connection.sync_connection.connection.driver_connection

    @property
    def in_transaction(self) -> bool:
        """Always, but for the isolation level AUTOCOMMIT."""
        return not _autocommits(self._connection.sync_connection)

    async def fetch(self, request: Request) -> list[Row]:
        """Runs one statement."""
        result = await self._connection.exec_driver_sql(*_rendered(self._connection, request), execution_options=WHOLE)
        return rows_of(result.fetchall()) if result.returns_rows else []
