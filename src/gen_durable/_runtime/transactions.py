"""The transactions of a worker's transactional steps: connections for them, and where they come from."""

from __future__ import annotations

import asyncio
import logging
import random
from concurrent.futures import Future
from typing import Any

import psycopg

from gen_durable._runtime.held import Held
from gen_durable._runtime.session import SessionTransaction, ThreadSessionTransaction, verify
from gen_durable._runtime.thread_transaction import BlockingTransaction
from gen_durable._runtime.threads import DaemonThreads
from gen_durable._runtime.transaction import LoopTransaction, Transaction
from gen_durable._runtime.turns import Turn, Turns, close_one
from gen_durable._store.operation import Catalog
from gen_durable._store.transaction import is_usable, open_step, open_step_sync
from gen_durable.config import Settings, check_sessionmaker
from gen_durable.machine import StepSpec

__all__ = ["Transactions"]

log = logging.getLogger("gen_durable")

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0


class Transactions:
    """Begins transactions, as many at once as the pool has connections, of each kind; a step waits for its turn.

    Connections are made when they are first needed, by the step that needs one, and kept.
    """

    def __init__(self, settings: Settings, url: str, sql: Catalog) -> None:
        self.sql = sql
        self.deadline = settings.statement_timeout
        self.idle = settings.transaction_idle_timeout
        self.threads = DaemonThreads(settings.transaction_pool_size)
        self._settings = settings
        self._url = url
        self._maker = settings.sessionmaker
        self._maker_of = check_sessionmaker(settings.sessionmaker)
        self._turns = {
            kind: Turns(settings.transaction_pool_size, self._spawn, self._undo_ahead) for kind in (True, False)
        }
        self._undoing: set[asyncio.Task[None]] = set()

    async def start(self, worker: int) -> None:
        """Sees that the sessions lead to the engine's database, where there are steps that need them.

        Raises:
            ConfigurationError: they don't.
        """
        if self._maker is not None and self._settings.transactional:
            is_async = self._maker_of == "async"
            await self._turns[is_async].take(Turn(0))  # given back as all are, at the end
            await verify(self, self._maker, is_async, worker)

    async def begin(self, held: Held, step: StepSpec) -> Transaction:
        """A transaction for one run, begun; the database's trouble is not the fault of the step, which waits."""
        held.queue.wake_one()  # for the rows behind it
        turn, turns = Turn(held.id), self._turns[step.is_async]
        given = await turns.take(turn)
        pause = FIRST_PAUSE
        while True:
            transaction: Transaction | None = None
            try:
                transaction = await self._one(turn, step, given)
                await transaction.begin()
                return transaction
            except (psycopg.OperationalError, psycopg.InterfaceError, OSError, TimeoutError) as error:
                given = None
                if transaction is not None:
                    await transaction.discard()
                    given = await turns.take(turn)
                log.warning("a connection for step %r: %s; trying again", held.step, str(error).strip())
            except BaseException:
                if transaction is not None:
                    self.abandon(transaction)
                else:
                    turns.give(None)
                raise
            try:
                await asyncio.sleep(pause * (0.5 + random.random()))
            except BaseException:
                turns.give(given)
                raise
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _one(self, turn: Turn, step: StepSpec, given: Any) -> Transaction:
        if self._maker_of == ("async" if step.is_async else "sync"):
            kind = SessionTransaction if step.is_async else ThreadSessionTransaction
            return kind(self, turn.mark, self._maker)
        connection = await self._connection(step.is_async, given)
        return _kind(connection)(self, turn.mark, connection, begun=connection.begun and connection.turn is turn)

    async def _connection(self, is_async: bool, given: Any) -> Any:
        while given is not None:
            if is_usable(given):
                return given
            await close_one(given)
            given = self._turns[is_async].another()
        name = f"gen_durable {self._settings.name} step"
        async with asyncio.timeout(self.deadline + 10.0):
            if is_async:
                return await open_step(self._url, name, self.sql, self.idle)
            opening = self.threads.submit(open_step_sync, self._url, name, self.sql, self.idle)
            try:
                return await asyncio.wrap_future(opening)
            except BaseException:
                opening.add_done_callback(_close_made)  # the thread goes on
                raise

    # What transactions report ---------------------------------------------------------------------

    def promise(self, connection: Any) -> int | None:
        """The mark of a step that waits, for a connection to begin its transaction behind the one that it commits."""
        return self._turns[_is_async(connection)].promise(connection)

    def give_back(self, connection: Any) -> None:
        """Its transaction is over."""
        self._turns[_is_async(connection)].give(connection)

    def discarded(self, connection: Any) -> None:
        """It is closed."""
        self._turns[_is_async(connection)].lose(connection)

    def ended(self, is_async: bool) -> None:
        """A session is closed."""
        self._turns[is_async].give(None)

    async def _undo_ahead(self, connection: Any) -> None:
        """Ends a transaction that was begun for a step which has given up."""
        await _kind(connection)(self, 0, connection).undo()

    async def undo(self, transaction: Transaction) -> None:
        """Rolls a transaction back."""
        try:
            await transaction.undo()
        except asyncio.CancelledError:
            self.abandon(transaction)
            raise

    def abandon(self, transaction: Transaction) -> None:
        """Ends a transaction at once, for a run that is cancelled."""
        transaction.expire()
        self._spawn(transaction.discard())

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._undoing.add(task)
        task.add_done_callback(self._undone)

    def _undone(self, task: asyncio.Task[None]) -> None:
        self._undoing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a transaction could not be ended in order: %s", str(error).strip())

    async def close(self) -> None:
        """Closes what is not in use; what is, is closed at its end."""
        for turns in self._turns.values():
            await turns.close()
        if self._undoing:
            await asyncio.wait(set(self._undoing), timeout=1.0)
        self.threads.shutdown()


def _close_made(opening: Future[Any]) -> None:
    """Closes a connection that nobody waits for any more."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().discard()


def _is_async(connection: Any) -> bool:
    return isinstance(connection, psycopg.AsyncConnection)


def _kind(connection: Any) -> type[LoopTransaction] | type[BlockingTransaction]:
    return LoopTransaction if _is_async(connection) else BlockingTransaction
