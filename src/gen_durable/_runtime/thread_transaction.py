"""The transaction of one run of a plain function, whose own statements run in threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from psycopg.pq import TransactionStatus

from gen_durable._runtime.transaction import NO_SESSION, Home, Transaction, check, usable
from gen_durable._store.connection import cut
from gen_durable._store.operation import Request, Row
from gen_durable._store.transaction import (
    COMMIT,
    ROLLBACK,
    StepConnectionSync,
    begin_sync,
    commit_sync,
    run_sync,
    take_over,
)

__all__ = ["BlockingTransaction", "PlainFunction"]

T = TypeVar("T")


class PlainFunction:
    """Whether a plain function still runs: a thread can't be stopped, but its connection can be cut."""

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close
        self._lock = threading.Lock()
        self._running = self._given_up = False

    @property
    def runs(self) -> bool:
        """Whether it does just now."""
        with self._lock:
            return self._running

    def enclose(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """The call, with a note while it runs; at its end it closes a connection that was given up meanwhile."""

        def enclosed() -> Any:
            with self._lock:
                self._running = True
            try:
                return call()
            finally:
                with self._lock:
                    self._running = False
                    given_up = self._given_up
                if given_up:
                    self._close()

        return enclosed

    def give_up(self) -> bool:
        """Its connection is of no more use; answers whether it still runs, and so closes that at its end."""
        with self._lock:
            self._given_up = True
            return self._running


class BlockingTransaction(Transaction):
    """Of a plain function, on a blocking connection of psycopg's: ours is sent from threads of our own.

    (The functions' threads may all wait for rows that this very transaction has locked.)
    """

    def __init__(self, home: Home, mark: int, connection: StepConnectionSync, *, begun: bool = False) -> None:
        super().__init__(home, mark)
        self._begun = begun
        self.conn = self._connection = connection
        connection.owner = mark
        self.session = NO_SESSION.format("plain functions", "sessionmaker")
        self._function = PlainFunction(self._close)

    def enclose(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Notes while the function runs."""
        return self._function.enclose(call)

    def _close(self) -> None:
        self._connection.discard()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        with self.watched(self._connection):
            return await asyncio.get_running_loop().run_in_executor(self.home.threads, work)

    async def begin(self) -> None:
        """Begins it, unless that is done."""
        if self._begun:
            take_over(self._connection)
            return
        await self._in_thread(lambda: begin_sync(self._connection, self.mark, self.home.idle))

    async def ready(self) -> None:
        """Looks at the connection's state."""
        check(self._connection)

    @property
    def broken(self) -> bool:
        """Whether the connection is closed."""
        return self._connection.closed

    @property
    def ended(self) -> bool:
        """Whether its connection is in no transaction any more."""
        return not self._connection.closed and self._connection.info.transaction_status is TransactionStatus.IDLE

    async def _run(self, request: Request) -> list[Row]:
        return await self._in_thread(lambda: run_sync(self._connection, request))

    async def _commit(self) -> None:
        await self._in_thread(lambda: run_sync(self._connection, COMMIT))

    async def _commit_all(self, requests: list[Request]) -> list[list[Row]]:
        ahead = self.home.promise(self._connection)
        return await self._in_thread(lambda: commit_sync(self._connection, requests, ahead))

    async def undo(self) -> None:
        """Rolls back, unless the function still runs."""
        if not self._function.runs and usable(self._connection):
            try:
                await self._in_thread(lambda: run_sync(self._connection, ROLLBACK))
            except Exception:  # noqa: BLE001  # whatever it is, the connection is not to be used again
                pass
            else:
                self._let_go(self.home.give_back, self._connection)
                return
        await self.discard()

    async def discard(self) -> None:
        """Cuts the connection; where the function still runs it closes it at its end."""
        runs = self._function.give_up()
        cut(self._connection)
        if not runs:
            self._close()
        self._let_go(self.home.discarded, self._connection)

    def done(self) -> None:
        """Back to the others."""
        self._let_go(self.home.give_back, self._connection)
