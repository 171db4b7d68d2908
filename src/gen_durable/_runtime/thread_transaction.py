"""The transaction of one run of a plain function, whose own statements run in threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from gen_durable._runtime.transaction import NO_SESSION, ConnectionTransaction, Home
from gen_durable._store.connection import cut
from gen_durable._store.operation import Request, Row
from gen_durable._store.transaction import (
    COMMIT,
    ROLLBACK,
    StepConnectionSync,
    begin_sync,
    commit_sync,
    run_sync,
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


class BlockingTransaction(ConnectionTransaction):
    """Of a plain function, on a blocking connection of psycopg's: ours is sent from threads of our own.

    (The functions' threads may all wait for rows that this very transaction has locked.)
    """

    session = NO_SESSION.format("plain functions", "sessionmaker")

    def __init__(self, home: Home, mark: int, connection: StepConnectionSync, *, begun: bool = False) -> None:
        super().__init__(home, mark, connection, begun=begun)
        self._function = PlainFunction(connection.discard)

    def enclose(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Notes while the function runs."""
        return self._function.enclose(call)

    @property
    def idle(self) -> bool:
        """Whether the function does not run any more."""
        return not self._function.runs

    async def _in_thread(self, work: Callable[[], T]) -> T:
        with self.watched(self._connection):
            return await asyncio.get_running_loop().run_in_executor(self.home.threads, work)

    async def _begin(self) -> None:
        await self._in_thread(lambda: begin_sync(self._connection, self.mark, self.home.idle))

    async def _run(self, request: Request) -> list[Row]:
        return await self._in_thread(lambda: run_sync(self._connection, request))

    async def _commit(self) -> None:
        await self._in_thread(lambda: run_sync(self._connection, COMMIT))

    async def _roll_back(self) -> None:
        await self._in_thread(lambda: run_sync(self._connection, ROLLBACK))

    async def _commit_all(self, requests: list[Request]) -> list[list[Row]]:
        ahead = self.home.promise(self._connection)
        return await self._in_thread(lambda: commit_sync(self._connection, requests, ahead))

    async def discard(self) -> None:
        """Cuts the connection; where the function still runs it closes it at its end."""
        runs = self._function.give_up()
        cut(self._connection)
        if not runs:
            self._connection.discard()
        self._let_go(self.home.discarded, self._connection)
