"""Transactions of steps in SQLAlchemy's sessions, which the user's ``sessionmaker`` makes; nothing is imported."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol, TypeVar

import psycopg

from gen_durable._runtime.thread_transaction import PlainFunction
from gen_durable._runtime.transaction import ENDED, Home, Transaction, state_of
from gen_durable._store.operation import Request, Row
from gen_durable._store.rendering import WHOLE, Rendered, dollar, named
from gen_durable._store.transaction import milliseconds
from gen_durable.errors import ConfigurationError, TransactionEnded, TransactionError

__all__ = ["SessionHome", "SessionTransaction", "ThreadSessionTransaction", "verify"]

T = TypeVar("T")


class SessionHome(Home, Protocol):
    """Where sessions are counted."""

    def ended(self, is_async: bool) -> None:
        """A session is closed, and its connection with its own pool."""


class _Session(Transaction):
    def __init__(self, home: SessionHome, mark: int, maker: Callable[[], Any]) -> None:
        super().__init__(home, mark)
        self._ended = home.ended
        self._maker = maker
        self._render: Callable[[Request], Rendered] = named
        self._broken = False
        self._commits: list[object] = []  # of the step's own

    @property
    def broken(self) -> bool:
        """Whether its connection is of no more use."""
        return self._broken

    @property
    def ended(self) -> bool:
        """Whether the step has committed it; a rollback of the step's leaves nothing behind."""
        return bool(self._commits)

    def _watch(self, session: Any) -> None:
        """Notes commits."""
        commits = self._commits
        sys.modules["sqlalchemy.event"].listen(session, "after_commit", lambda _: commits.append(None))

    def _check(self) -> None:
        if self._commits:
            raise TransactionEnded(ENDED)

    def _opening(self) -> Request:
        idle = milliseconds(self.home.idle)
        return self.home.sql["transacting/mark"].bind(mark=str(self.mark), idle=idle)

    def _meet(self, dialect: Any, driver: Any) -> None:
        """Learns the form of statements, and whether the step can have the driver's connection."""
        if dialect.name != "postgresql" or dialect.paramstyle not in ("pyformat", "numeric_dollar"):
            raise ConfigurationError(
                f"the sessionmaker's driver is {dialect.name}+{dialect.driver}: use postgresql+psycopg or +asyncpg"
            )
        self._render = dollar if dialect.paramstyle == "numeric_dollar" else named
        of_psycopg = isinstance(driver, psycopg.AsyncConnection | psycopg.Connection)
        self.conn = driver if of_psycopg else f"ctx.conn: the session's driver is {dialect.driver}; use ctx.session"

    @contextlib.contextmanager
    def _translating(self) -> Iterator[None]:
        """Errors of any driver as psycopg's of the same SQLSTATE: what follows hangs on nothing else."""
        try:
            yield
        except psycopg.Error:
            raise
        except Exception as error:
            state = state_of(error)
            if getattr(error, "connection_invalidated", False) or isinstance(error, TimeoutError) or _has_none(error):
                self._broken = True
                raise psycopg.OperationalError(str(error) or "no answer in time") from error
            if state == "25P02":
                raise TransactionError(
                    "the step's transaction is aborted: a statement failed, and the step went on; put what may fail "
                    "into `session.begin_nested()`, or let the error end the step"
                ) from error
            if not state:
                raise
            raise _error_of(state)(str(getattr(error, "orig", error))) from error


def _has_none(error: Exception) -> bool:
    """Whether there was no connection to be had: the server did not let it in, or SQLAlchemy's pool is exhausted."""
    orig = getattr(error, "orig", None)
    return (isinstance(orig, psycopg.OperationalError) and not state_of(orig)) or getattr(error, "code", "") == "3o7r"


def _error_of(state: str) -> type[psycopg.Error]:
    try:
        return psycopg.errors.lookup(state)
    except KeyError:
        return psycopg.DatabaseError


class SessionTransaction(_Session):
    """Of an async step, in an ``AsyncSession``."""

    async def begin(self) -> None:
        """Makes the session and begins."""
        async with self._bounded():
            self.session = self._maker()
            connection = await self.session.connection()
            raw = await connection.get_raw_connection()
            self._meet(connection.dialect, raw.driver_connection)
            self._watch(self.session.sync_session)
        await self._run(self._opening())

    @contextlib.asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        with self._translating():
            async with asyncio.timeout(self.home.deadline):
                yield

    async def ready(self) -> None:
        """Sends what the session still holds back: that is the step's own SQL."""
        self._check()
        await self.session.flush()

    async def _run(self, request: Request) -> list[Row]:
        text, parameters = self._render(request)
        async with self._bounded():
            result = await (await self.session.connection()).exec_driver_sql(text, parameters, execution_options=WHOLE)
            return [tuple(row) for row in result.fetchall()] if result.returns_rows else []

    async def _commit(self) -> None:
        async with self._bounded():
            await self.session.commit()
            await self.session.close()

    async def undo(self) -> None:
        """Rolls back and closes the session."""
        try:
            async with asyncio.timeout(self.home.deadline):
                await self.session.rollback()
                await self.session.close()
        except Exception:  # noqa: BLE001  # of any driver: then its connection is not given back
            await self.discard()
        else:
            self._let_go(self._ended, True)

    async def discard(self) -> None:
        """Closes the session's connection instead of giving it back to its pool."""
        try:
            if self.session is not None:
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(self.home.deadline):
                        await self.session.invalidate()
        finally:
            self._let_go(self._ended, True)

    def done(self) -> None:
        """The session is closed already."""
        self._let_go(self._ended, True)


class ThreadSessionTransaction(_Session):
    """Of a plain function, in a ``Session``: ours runs in threads of our own."""

    def __init__(self, home: SessionHome, mark: int, maker: Callable[[], Any]) -> None:
        super().__init__(home, mark, maker)
        self._function = PlainFunction(self._invalidate)
        self._driver: Any = None

    def enclose(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Notes while the function runs."""
        return self._function.enclose(call)

    def _invalidate(self) -> None:
        if self.session is not None:
            with contextlib.suppress(Exception):
                self.session.invalidate()

    def _cut(self) -> None:
        """Ends the driver's socket, where it shows one."""
        with contextlib.suppress(Exception), socket.socket(fileno=os.dup(self._driver.fileno())) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self.home.deadline, self._cut)
        try:
            with self._translating():
                return await loop.run_in_executor(self.home.threads, work)
        finally:
            timer.cancel()

    async def begin(self) -> None:
        """Makes the session and begins."""

        def work() -> None:
            self.session = self._maker()
            connection = self.session.connection()
            self._driver = connection.connection.driver_connection
            self._meet(connection.dialect, self._driver)
            self._watch(self.session)

        await self._in_thread(work)
        await self._run(self._opening())

    async def ready(self) -> None:
        """Sends what the session still holds back: that is the step's own SQL."""
        self._check()
        await asyncio.get_running_loop().run_in_executor(self.home.threads, self.session.flush)

    async def _run(self, request: Request) -> list[Row]:
        text, parameters = self._render(request)

        def work() -> list[Row]:
            result = self.session.connection().exec_driver_sql(text, parameters, execution_options=WHOLE)
            return [tuple(row) for row in result.fetchall()] if result.returns_rows else []

        return await self._in_thread(work)

    async def _commit(self) -> None:
        def work() -> None:
            self.session.commit()
            self.session.close()

        await self._in_thread(work)

    async def undo(self) -> None:
        """Rolls back and closes the session, unless the function still runs."""

        def work() -> None:
            self.session.rollback()
            self.session.close()

        if not self._function.runs:
            try:
                await self._in_thread(work)
            except Exception:  # noqa: BLE001  # of any driver: then its connection is not given back
                pass
            else:
                self._let_go(self._ended, False)
                return
        await self.discard()

    async def discard(self) -> None:
        """Cuts the connection; where the function still runs it is closed at its end."""
        runs = self._function.give_up()
        self._cut()
        try:
            if not runs:
                with contextlib.suppress(RuntimeError):  # at the end of the process there may be no more threads
                    await asyncio.get_running_loop().run_in_executor(None, self._invalidate)
        finally:
            self._let_go(self._ended, False)

    def done(self) -> None:
        """The session is closed already."""
        self._let_go(self._ended, False)


async def verify(home: SessionHome, maker: Callable[[], Any], is_async: bool, worker: int) -> None:
    """Sees that a sessionmaker leads to the engine's database.

    Raises:
        ConfigurationError: it does not, or it can't be told.
    """
    transaction = (SessionTransaction if is_async else ThreadSessionTransaction)(home, 0, maker)
    try:
        await transaction.begin()
        rows = await transaction._run(home.sql["transacting/same"].bind(worker=worker))
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        rows = [(0, "off")]
    except (psycopg.Error, OSError, TimeoutError) as error:
        raise ConfigurationError(f"sessionmaker=: its database can't be asked: {str(error).strip()}") from error
    finally:
        await transaction.undo()
    if rows[0][0] != 1:
        raise ConfigurationError(
            "sessionmaker=: its engine leads to another database than this engine's; a step's SQL and its outcome "
            "can commit together only in one: create it with the same host, port and database"
        )
    if rows[0][1] != "off":
        raise ConfigurationError("sessionmaker=: its connections are read-only; give one that may write")
