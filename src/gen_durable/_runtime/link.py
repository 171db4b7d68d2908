"""A service's own connection: kept alive, watched, and made anew when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

import psycopg
from psycopg import AsyncConnection

from gen_durable._store.connection import cut, fetch, fetch_at_once, open_connection, set_up
from gen_durable._store.operation import Operation, Request, Row, drive_together
from gen_durable.events import Hooks, ReconnectEvent, emit

__all__ = ["Link", "LinkClosed", "LinkDown"]

T = TypeVar("T")

log = logging.getLogger("gen_durable")

FIRST_PAUSE = 0.02
LONGEST_PAUSE = 2.0
# A connection that lasted this long was a good one: the next is made at once. One that breaks sooner, over and over (a
# server that refuses each statement), is made anew with the pauses of one that can't be made at all.
STEADY_SECONDS = 1.0


class LinkDown(Exception):
    """The connection broke while a statement was under way: whether it took effect is not known."""


class LinkClosed(LinkDown):
    """The link is closed for good: its worker's life is over, and there is no use in trying again."""


class Link:
    """One connection with a watchdog.

    A statement that gets no answer within ``deadline`` seconds ends with its socket: a frozen link fails like a cut
    one. The next statement makes a new connection, for as long as it takes. One statement at a time. With ``patience``
    a statement that waits longer than so many seconds for a lock fails (where the session is the worker's own).
    """

    def __init__(
        self,
        url: str,
        name: str,
        hooks: Hooks,
        *,
        application_name: str,
        deadline: float,
        longest_pause: float = LONGEST_PAUSE,
        patience: float | None = None,
    ) -> None:
        self.name = name
        self._patience = patience
        self.own_session = True
        self.on_connect: Callable[[AsyncConnection[Row]], Awaitable[None]] | None = None
        self._url = url
        self._hooks = hooks
        self._application_name = application_name
        self._deadline = deadline
        self._longest_pause = longest_pause
        self._pause = 0.0  # before the next attempt
        self._since = 0.0  # when the connection was made
        self._connection: AsyncConnection[Row] | None = None
        self._turn = asyncio.Lock()
        self._lost_at: float | None = None
        self._closed = False

    @property
    def connection(self) -> AsyncConnection[Row] | None:
        """The connection, when there is one."""
        return self._connection

    @property
    def closed(self) -> bool:
        """Whether it is closed for good."""
        return self._closed

    async def fetch(self, request: Request) -> list[Row]:
        """Runs one statement; connects first when need be.

        Raises:
            LinkDown: when the connection broke after the statement was sent.
            psycopg.Error: the statement's own error; the connection is still good.
        """
        async with self._in_use() as connection:
            return await self._send(connection, request)

    async def together(self, operation: Operation[T]) -> T:
        """Runs an operation in one transaction: all of it takes effect, or nothing.

        Raises:
            LinkDown: when the connection broke on the way; the commit may have been sent.
            psycopg.Error, or what the operation itself raises: rolled back, and the connection is still good.
        """
        async with self._in_use() as connection:
            return await drive_together(operation, lambda request: self._send(connection, request))

    async def at_once(self, requests: list[Request]) -> list[list[Row]]:
        """Runs statements in one transaction and one round trip: the answers, in the order of the statements.

        Raises:
            as :meth:`together`; the first error of a statement, and nothing has taken effect.
        """
        async with self._in_use() as connection:
            with self._watched(connection):
                return await fetch_at_once(connection, requests)

    async def _send(self, connection: AsyncConnection[Row], request: Request) -> list[Row]:
        with self._watched(connection):
            return await fetch(connection, request)

    @contextlib.asynccontextmanager
    async def _in_use(self) -> AsyncIterator[AsyncConnection[Row]]:
        async with self._turn:
            connection = self._connection or await self._connect()
            try:
                yield connection
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if not _is_down(connection, error):
                    raise
                await self.drop(error)
                raise (LinkClosed if self._closed else LinkDown)(str(error)) from error
            except asyncio.CancelledError:
                await self.drop(None)
                raise

    async def connect(self) -> None:
        """Connects now, for as long as it takes."""
        async with self._turn:
            if self._connection is None:
                await self._connect()

    async def _connect(self) -> AsyncConnection[Row]:
        while True:
            if self._closed:
                await asyncio.sleep(0)  # whoever tries again all the same must not keep others from their turn
                raise LinkClosed("the link is closed")
            first = not self._pause
            if not first:
                await asyncio.sleep(self._pause * (0.5 + random.random()))
            self._pause = min(max(self._pause * 2, FIRST_PAUSE), self._longest_pause)
            try:
                connection = await self._try_connect()
                break
            except (psycopg.Error, OSError, TimeoutError) as error:
                if self._lost_at is None:
                    self._lost_at = time.monotonic()
                if first:
                    log.warning("%s connection: can't connect, trying again: %s", self.name, str(error).strip())
        if self._closed:  # in the meantime
            await _discard(connection)
            raise LinkClosed("the link is closed")
        self._connection = connection
        self._since = time.monotonic()
        if self._lost_at is not None:
            took = time.monotonic() - self._lost_at
            self._lost_at = None
            log.info("%s connection: there again after %.2f s", self.name, took)
            emit(self._hooks.reconnect, ReconnectEvent(connection=self.name, took=took))
        return connection

    async def _try_connect(self) -> AsyncConnection[Row]:
        async with asyncio.timeout(self._deadline):
            connection = await open_connection(self._url, self._application_name)
        try:
            with self._watched(connection):
                self.own_session = await set_up(connection, steady=True, patience=self._patience)
                if self.on_connect is not None:
                    await self.on_connect(connection)
        except BaseException:
            await _discard(connection)
            raise
        return connection

    @contextlib.contextmanager
    def _watched(self, connection: AsyncConnection[Row]) -> Iterator[None]:
        timer = asyncio.get_running_loop().call_later(self._deadline, cut, connection)
        try:
            yield
        finally:
            timer.cancel()

    async def drop(self, error: BaseException | None) -> None:
        """Gives the connection up; the next statement makes another."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if time.monotonic() - self._since > STEADY_SECONDS:
            self._pause = 0.0
        if self._lost_at is None and not self._closed:
            self._lost_at = time.monotonic()
            if error is not None:
                log.warning("%s connection: lost: %s", self.name, str(error).strip())
        await _discard(connection)

    async def rest(self) -> None:
        """Closes the connection until the next statement needs one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await _discard(connection)

    def abort(self) -> None:
        """Makes the statement that is under way fail at once; there is none after it."""
        self._closed = True
        if self._connection is not None:
            cut(self._connection)

    async def close(self) -> None:
        """Closes for good; a statement under way fails."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            await _discard(connection)


async def _discard(connection: AsyncConnection[Row]) -> None:
    cut(connection)
    with contextlib.suppress(psycopg.Error, OSError):
        await connection.close()


def _is_down(connection: AsyncConnection[Row], error: psycopg.Error) -> bool:
    """Whether the connection is of no more use: broken, shut down by the server, or no longer at a primary."""
    state = error.sqlstate or ""
    return connection.closed or not state or state[:2] == "08" or state[:3] == "57P" or state == "25006"
