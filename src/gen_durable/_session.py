"""The client's connections: a pool, watched, with errors that say what happened."""

from __future__ import annotations

import asyncio
import select
import time
from typing import Any, TypeAlias

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from gen_durable._store.connection import OwnConnection, cut, fetch, forbidden, open_connection, set_up, unreachable
from gen_durable._store.migrating import check_version
from gen_durable._store.operation import Operation, Request, Row, drive, drive_together
from gen_durable.config import Settings
from gen_durable.errors import DatabaseUnreachable, EngineStateError, InvalidArgument

__all__ = ["Session", "is_quiet"]

KEPT_SECONDS = 60.0
"""A connection goes back to its pool at least so often."""


_Pool: TypeAlias = "AsyncConnectionPool[OwnConnection]"


class Session:
    """What runs the client's operations; open between :meth:`open` and :meth:`close`."""

    def __init__(self, settings: Settings) -> None:
        self.url = ""
        self._settings = settings
        self._pool: _Pool | None = None
        # The connection that was used last, kept from the pool for the next call: a visit there costs half of a call.
        self._spare: OwnConnection | None = None
        self._queued = 0  # calls that wait for the pool

    async def open(self, url: str) -> bool:
        """Connects and checks the schema; answers whether that has a test clock.

        Raises:
            DatabaseUnreachable, SchemaMissing, SchemaVersionError: what stands in the way.
        """
        self.url = url
        self._spare, self._queued = None, 0  # of an event loop that is no more, perhaps
        name = f"gen_durable {self._settings.name}"
        try:
            async with asyncio.timeout(self._settings.statement_timeout):
                first = await open_connection(url, name)
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise unreachable(url, error) from None
        try:
            test_clock = await check_version(lambda request: fetch(first, request), self._settings.schema)
        except psycopg.errors.InsufficientPrivilege as error:
            raise forbidden(url, error) from None
        finally:
            await first.close()
        self._pool = AsyncConnectionPool(
            kwargs={"url": url, "application_name": name},
            connection_class=_PooledConnection,
            min_size=1,
            max_size=self._settings.pool_size,
            check=_check_if_idle,
            configure=_configure,
            open=False,
            timeout=self._settings.statement_timeout,
            name=f"gen_durable-{self._settings.name}",
        )
        await self._pool.open()
        return test_clock

    async def close(self) -> None:
        """Closes the pool; safe to call twice."""
        pool, self._pool = self._pool, None
        spare, self._spare = self._spare, None
        if pool is not None:
            if spare is not None:
                await pool.putconn(spare)
            await pool.close()

    async def fetch(self, request: Request) -> list[Row]:
        """Runs one statement.

        Raises:
            EngineStateError: the session is not open.
            InvalidArgument: the database refused a value.
            DatabaseError: a right is missing.
            DatabaseUnreachable: no connection, or it broke on the way.
        """
        self.check_open()
        try:
            connection = await self._take()
            try:
                return await self._watched(connection, request)
            finally:
                await self._give(connection)
        except Exception as error:
            if (told := self._explained(error, request.statement.name)) is None:
                raise
            raise told from error

    async def call(self, operation: Operation[Any]) -> Any:
        """Runs an operation; each statement is a transaction of its own."""
        return await drive(operation, self.fetch)

    async def together(self, operation: Operation[Any]) -> Any:
        """Runs an operation in one transaction: all of it takes effect, or nothing.

        Raises:
            as :meth:`fetch`, and what the operation itself raises; the transaction is rolled back.
        """
        self.check_open()
        try:
            connection = await self._take()
            try:
                return await drive_together(operation, lambda request: self._watched(connection, request))
            finally:
                await self._give(connection)
        except Exception as error:
            if (told := self._explained(error, "a transaction")) is None:
                raise
            raise told from error

    async def _watched(self, connection: Any, request: Request) -> list[Row]:
        timer = asyncio.get_running_loop().call_later(self._settings.statement_timeout, cut, connection)
        try:
            return await fetch(connection, request)
        finally:
            timer.cancel()

    def check_open(self) -> None:
        """Refuses a call before :meth:`open` and after :meth:`close`.

        Raises:
            EngineStateError: the session is not open.
        """
        if self._pool is None:
            raise EngineStateError(
                f"the engine {self._settings.name!r} is not started: use it inside `async with engine:` "
                "or `async with engine.client():`"
            )

    def _explained(self, error: Exception, what: str) -> Exception | None:
        """The error that tells a caller of one of the driver's; None: that is for him to see."""
        match error:
            case PoolTimeout() | PoolClosed():
                return unreachable(self.url, error)
            case psycopg.DataError() | psycopg.errors.ProgramLimitExceeded() | psycopg.errors.StatementTooComplex():
                return InvalidArgument(f"Postgres refused a value of {what}: {str(error).strip()}")
            case psycopg.errors.InsufficientPrivilege():
                return forbidden(self.url, error)
            case psycopg.OperationalError():
                if error.sqlstate and error.sqlstate[:2] != "08" and error.sqlstate[:3] != "57P":
                    return None
                return DatabaseUnreachable(
                    f"{unreachable(self.url, error)}. The connection broke while {what} was under way: "
                    "a write may or may not have taken effect"
                )
        return None

    async def _take(self) -> Any:
        """A connection for one call: the one that is kept, else one of the pool's."""
        spare, self._spare = self._spare, None
        if spare is not None and is_quiet(spare):
            return spare
        pool = self._pool
        assert pool is not None
        self._queued += 1
        try:
            if spare is not None:  # the pool finds it broken when somebody asks for it
                await asyncio.shield(pool.putconn(spare))
            connection = await pool.getconn()
        finally:
            self._queued -= 1
        connection.lent_at, connection.lent_by = time.monotonic(), pool
        return connection

    async def _give(self, connection: Any) -> None:
        """Keeps it for the next call, unless the pool is to have it back."""
        rests = connection.pgconn.transaction_status == TransactionStatus.IDLE
        young = time.monotonic() - connection.lent_at < KEPT_SECONDS
        if rests and young and self._spare is None and not self._queued and self._pool is connection.lent_by:
            self._spare = connection
        else:
            await connection.lent_by.putconn(connection)


class _PooledConnection(OwnConnection):
    """The pool's connections are opened like all others of ours."""

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        return await open_connection(kwargs["url"], kwargs["application_name"])


async def _configure(connection: OwnConnection) -> None:
    await set_up(connection, steady=False)


async def _check_if_idle(connection: OwnConnection) -> None:
    if not is_quiet(connection):
        await AsyncConnectionPool.check_connection(connection)


def is_quiet(connection: AsyncConnection[Row] | Connection[Row]) -> bool:
    """A connection at rest that has something to read was closed by the other side: found without a round trip."""
    if connection.closed:
        return False
    quiet = select.poll()
    quiet.register(connection.pgconn.socket, select.POLLIN)
    return not quiet.poll(0)
