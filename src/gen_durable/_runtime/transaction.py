"""The transaction of one run of a transactional step, as what its outcome is committed over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor as Threads
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus

from gen_durable._runtime.link import LinkDown
from gen_durable._store.connection import cut
from gen_durable._store.operation import Catalog, Operation, Request, Row, drive
from gen_durable._store.transaction import (
    COMMIT,
    ROLLBACK,
    STEP,
    StepConnection,
    StepConnectionSync,
    begin,
    commit,
    run,
    steady,
    take_over,
)
from gen_durable.context import Context
from gen_durable.errors import TransactionEnded, TransactionError

__all__ = ["ENDED", "NO_SESSION", "ConnectionTransaction", "Home", "LoopTransaction", "Transaction", "state_of"]

T = TypeVar("T")

NO_SESSION = "ctx.session: the engine has no sessionmaker= for {}: give it SQLAlchemy's {}"
OVER = "its run is over, and the transaction with it"
ENDED = (
    "the step has ended its transaction, with a COMMIT or ROLLBACK of its own: what it did before may be committed "
    "without its outcome, so it is not run again; leave the end of the transaction to the engine"
)


class Home(Protocol):
    """Where a transaction's connection comes from and goes to."""

    sql: Catalog
    deadline: float  # seconds without an answer after which a connection is given up
    idle: float  # seconds that may pass between two statements

    @property
    def threads(self) -> Threads:
        """Where ours is sent over blocking connections."""
        ...

    def promise(self, connection: Any) -> int | None:
        """The mark of a transaction to begin behind the one that a connection is about to commit; None: of none."""
        ...

    def give_back(self, connection: Any) -> None:
        """The transaction is over; the connection is looked at before its next use."""

    def discarded(self, connection: Any) -> None:
        """The connection is closed; another may be made."""


class Transaction:
    """One transaction, from before the step's code until the commit or the rollback.

    ``fetch``, ``at_once`` and ``together`` send our statements and the COMMIT, when the step's code has ended.
    """

    conn: Any = None
    session: Any = None

    def __init__(self, home: Home, mark: int) -> None:
        self.home = home
        self.mark = mark
        self._out = True  # its connection is with it
        self._ctx: Context | None = None

    def given_to(self, ctx: Context | None) -> None:
        """A context has it, for as long as the step runs."""
        if ctx is not None:
            ctx._conn, ctx._session = self.conn, self.session
        self._ctx = ctx

    def within(self, call: Callable[[], Any], *, is_async: bool) -> Callable[[], Any]:
        """The call, by which the connection knows the step's code, and the tasks that it starts."""

        async def known() -> Any:
            STEP.set(self.mark)
            return await call()

        def known_in_thread() -> Any:
            STEP.set(self.mark)
            return call()

        return known if is_async else known_in_thread

    def expire(self) -> None:
        """The step's code is over."""
        if self._ctx is not None:
            self._ctx._conn, self._ctx._session = f"ctx.conn: {OVER}", f"ctx.session: {OVER}"
        if isinstance(self.conn, StepConnection | StepConnectionSync):
            self.conn.owner = None

    def enclose(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """The call of a plain function, as the thread is to run it."""
        return call

    async def begin(self) -> None:
        """Begins it.

        Raises:
            psycopg.Error, OSError, TimeoutError: it can't; the connection is to be discarded.
        """
        raise NotImplementedError

    async def ready(self) -> None:
        """Sees that what the step has left can be committed; sends what its session still holds back.

        Raises:
            TransactionError: it can't.
            psycopg.OperationalError: the connection is broken.
        """
        raise NotImplementedError

    @property
    def broken(self) -> bool:
        """Whether the connection is of no more use."""
        raise NotImplementedError

    @property
    def ended(self) -> bool:
        """Whether the step has ended it: then what it wrote may be committed, though it failed."""
        raise NotImplementedError

    async def _run(self, request: Request) -> list[Row]:
        raise NotImplementedError

    async def _commit(self) -> None:
        raise NotImplementedError

    async def _commit_all(self, requests: list[Request]) -> list[list[Row]]:
        answers = [await self._run(request) for request in requests]
        await self._commit()
        return answers

    async def undo(self) -> None:
        """Rolls back; the connection goes back, or is closed where that is not to be had."""
        raise NotImplementedError

    async def discard(self) -> None:
        """Closes the connection, and so rolls back, whatever it is doing."""
        raise NotImplementedError

    def done(self) -> None:
        """It is committed."""
        raise NotImplementedError

    def _let_go(self, tell: Callable[[Any], None], what: Any) -> None:
        if self._out:
            self._out = False
            tell(what)

    # The channel ----------------------------------------------------------------------------------

    async def fetch(self, request: Request) -> list[Row]:
        """Runs one statement and commits.

        Raises:
            LinkDown: the connection broke; the commit may have been sent.
            psycopg.Error, or what the operation itself raises: nothing has taken effect; it is to be rolled back.
        """
        return (await self.at_once([request]))[0]

    async def at_once(self, requests: list[Request]) -> list[list[Row]]:
        """Runs statements and commits; raises as :meth:`fetch`."""
        with self._breaking():
            return (await self._commit_all([steady(self.home.sql), *requests]))[1:]

    async def together(self, operation: Operation[T]) -> T:
        """Runs an operation and commits; raises as :meth:`fetch`."""
        with self._breaking():
            await self._run(steady(self.home.sql))
            value = await drive(operation, self._run)
            await self._commit()
        return value

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        try:
            yield
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            if self.broken and state_of(error) != "25P03":
                raise LinkDown(str(error)) from error
            raise

    @contextlib.contextmanager
    def watched(self, connection: Any) -> Iterator[None]:
        """Gives a silent connection up."""
        timer = asyncio.get_running_loop().call_later(self.home.deadline, cut, connection)
        try:
            yield
        finally:
            timer.cancel()


class ConnectionTransaction(Transaction):
    """On one of the worker's own connections."""

    def __init__(self, home: Home, mark: int, connection: Any, *, begun: bool = False) -> None:
        super().__init__(home, mark)
        self._begun = begun  # behind the commit of another
        self.conn = self._connection = connection
        connection.owner = mark

    async def begin(self) -> None:
        """Begins it, in one round trip, unless that is done."""
        if self._begun:
            take_over(self._connection)
        else:
            await self._begin()

    async def ready(self) -> None:
        """Looks at the connection's state."""
        check(self._connection)

    @property
    def broken(self) -> bool:
        """Whether the connection is closed."""
        return bool(self._connection.closed)

    @property
    def ended(self) -> bool:
        """Whether its connection is in no transaction any more."""
        return not self._connection.closed and self._connection.info.transaction_status is TransactionStatus.IDLE

    @property
    def idle(self) -> bool:
        """Whether nobody uses the connection just now."""
        return True

    async def undo(self) -> None:
        """Rolls back; closes the connection where that can't be done."""
        if self.idle and _usable(self._connection):
            try:
                await self._roll_back()
            except Exception:  # noqa: BLE001  # whatever it is, the connection is not to be used again
                pass
            else:
                self._let_go(self.home.give_back, self._connection)
                return
        await self.discard()

    def done(self) -> None:
        """Back to the others."""
        self._let_go(self.home.give_back, self._connection)

    async def _begin(self) -> None:
        raise NotImplementedError

    async def _roll_back(self) -> None:
        raise NotImplementedError


class LoopTransaction(ConnectionTransaction):
    """Of an async step, on a connection of psycopg's."""

    session = NO_SESSION.format("async steps", "async_sessionmaker")

    async def _begin(self) -> None:
        with self.watched(self._connection):
            await begin(self._connection, self.mark, self.home.idle)

    async def _run(self, request: Request) -> list[Row]:
        with self.watched(self._connection):
            return await run(self._connection, request)

    async def _commit(self) -> None:
        with self.watched(self._connection):
            await run(self._connection, COMMIT)

    async def _roll_back(self) -> None:
        with self.watched(self._connection):
            await run(self._connection, ROLLBACK)

    async def _commit_all(self, requests: list[Request]) -> list[list[Row]]:
        with self.watched(self._connection):
            return await commit(self._connection, requests, self.home.promise(self._connection))

    async def discard(self) -> None:
        """Cuts the socket first: nothing waits for a server that does not answer."""
        cut(self._connection)
        try:
            await self._connection.discard()
        finally:
            self._let_go(self.home.discarded, self._connection)


def _usable(connection: StepConnection | StepConnectionSync) -> bool:
    """Whether a rollback can be sent on it."""
    return (
        not connection.closed
        and connection.info.transaction_status is not TransactionStatus.ACTIVE
        and connection.pgconn.pipeline_status == PipelineStatus.OFF
    )


def check(connection: StepConnection | StepConnectionSync) -> None:
    """Refuses a connection whose transaction can't be committed.

    Raises:
        TransactionError: it is aborted, or a statement is not at its end.
        TransactionEnded: it is over.
        psycopg.OperationalError: it broke.
    """
    if connection.closed:
        raise psycopg.OperationalError("the connection of the step's transaction broke")
    if connection.pgconn.pipeline_status != PipelineStatus.OFF:
        raise TransactionError(
            "a pipeline of the step is still open: use `with ctx.conn.pipeline():`, and leave it before the step ends"
        )
    match connection.info.transaction_status:
        case TransactionStatus.INTRANS:
            return
        case TransactionStatus.INERROR:
            raise TransactionError(
                "the step's transaction is aborted: a statement failed, and the step went on; put what may fail into "
                "`with ctx.conn.transaction():`, which then is rolled back by itself, or let the error end the step"
            )
        case TransactionStatus.IDLE:
            raise TransactionEnded(ENDED)
        case _:
            raise TransactionError(
                "a statement of the step is still under way: read cursor.stream() or copy() to its end, and await all "
                "that uses ctx.conn"
            )


def state_of(error: BaseException) -> str:
    """The SQLSTATE of an error, of psycopg's or of one that wraps a driver's; empty where there is none."""
    for found in (error, getattr(error, "orig", None), getattr(getattr(error, "orig", None), "__cause__", None)):
        state = getattr(found, "sqlstate", None) or getattr(found, "pgcode", None)
        if isinstance(state, str):
            return state
    return ""
