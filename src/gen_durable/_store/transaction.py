"""The connections of transactional steps: psycopg's, with ordinary settings; a step can't commit them by itself."""

from __future__ import annotations

import re
import select
from contextvars import ContextVar
from typing import Any, NoReturn

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from gen_durable._store.connection import _arguments, has_rows
from gen_durable._store.exchange import Exchange, asking, exchanged, executing, numbers
from gen_durable._store.operation import Catalog, Request, Row
from gen_durable.errors import TransactionEnded, TransactionError

__all__ = [
    "CLAIM_LOST",
    "COMMIT",
    "MARK_LOST",
    "ROLLBACK",
    "STEP",
    "StepConnection",
    "StepConnectionSync",
    "begin",
    "begin_sync",
    "commit",
    "commit_sync",
    "is_usable",
    "milliseconds",
    "open_step",
    "open_step_sync",
    "run",
    "run_sync",
    "steady",
]

CLAIM_LOST, MARK_LOST = "claim lost: ", "mark lost: "  # in the message of the error with which commit.sql fails

# The server must notice a worker that is gone, whatever its connection was doing.
_BOUNDS = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "3",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
}
_PREPARE_AFTER = 5  # psycopg's own default, for the step's statements

_ENDS = re.compile(
    r"\s*(?:commit|end|abort|rollback(?!(?:\s+work|\s+transaction)?\s+to\b)|begin|start\s+transaction"
    r"|prepare\s+transaction)\b",
    re.IGNORECASE,
)


def refuse(what: str) -> NoReturn:
    """Refuses what would end a step's transaction.

    Raises:
        TransactionEnded: always.
    """
    raise TransactionEnded(
        f"{what} would end the step's transaction, which is to hold its outcome: the engine commits it after the step, "
        "and rolls it back when the step raises; use `with ctx.conn.transaction():` for a part that may fail"
    )


def _check(query: object) -> None:
    """Refuses a statement that would end the transaction, before it does: what it committed could not be undone."""
    text = query.decode("utf-8", "replace") if isinstance(query, bytes) else query
    if isinstance(text, str) and (found := _ENDS.match(text)):
        refuse(" ".join(found[0].split()).upper())


class _StepCursor(AsyncCursor[Any]):
    async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        _check(query)
        return await super().execute(query, *args, **kwargs)


class _StepCursorSync(Cursor[Any]):
    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        _check(query)
        return super().execute(query, *args, **kwargs)


STEP: ContextVar[int] = ContextVar("gen_durable_step")  # the mark of the transactional step whose code runs here


def _see_owner(owner: int | None) -> None:
    """Refuses a statement of a step's code that comes behind the step: of a task that it left there."""
    if STEP.get(owner) != owner:
        raise TransactionError(
            "ctx.conn was used behind its step, by a task or thread that this had left: by now it is another's; "
            "await in the step what it starts"
        )


class StepConnection(AsyncConnection[Any]):
    """What an async step gets as ``ctx.conn``."""

    own_session = True  # of the server's, not of a pooler's
    owner: int | None = None  # the mark of the step that has it
    prepared: set[str]  # statements of ours that its session has
    begun = False  # the transaction of the next step is begun already
    turn: object = None  # that next step
    silent = False  # it commits, and begins none

    async def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        """Every exchange with the server goes through here."""
        _see_owner(self.owner)
        return await super().wait(gen, *args, **options)

    async def commit(self) -> None:
        """Refused: the engine commits."""
        refuse("ctx.conn.commit()")

    async def rollback(self) -> None:
        """Refused: the engine rolls back."""
        refuse("ctx.conn.rollback()")

    async def close(self) -> None:
        """Refused: others use it after this step."""
        refuse("ctx.conn.close()")

    async def discard(self) -> None:
        """Closes it."""
        await super().close()

    def _deallocate(self, name: bytes | None) -> Any:
        """psycopg forgets what it has prepared after a rollback, and with that what we have."""
        if name is None:
            self.prepared.clear()
        return super()._deallocate(name)

    def ready(self) -> None:
        """Undoes what an earlier step may have set on the object."""
        self.row_factory = tuple_row
        self.cursor_factory = _StepCursor
        self.prepare_threshold = _PREPARE_AFTER if self.own_session else None


class StepConnectionSync(Connection[Any]):
    """What a plain function gets as ``ctx.conn``."""

    own_session = True
    owner: int | None = None
    prepared: set[str]
    begun = False
    turn: object = None
    silent = False

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        """Every exchange with the server goes through here."""
        _see_owner(self.owner)
        return super().wait(gen, *args, **options)

    def commit(self) -> None:
        """Refused: the engine commits."""
        refuse("ctx.conn.commit()")

    def rollback(self) -> None:
        """Refused: the engine rolls back."""
        refuse("ctx.conn.rollback()")

    def close(self) -> None:
        """Refused: others use it after this step."""
        refuse("ctx.conn.close()")

    def discard(self) -> None:
        """Closes it."""
        super().close()

    def _deallocate(self, name: bytes | None) -> Any:
        """psycopg forgets what it has prepared after a rollback, and with that what we have."""
        if name is None:
            self.prepared.clear()
        return super()._deallocate(name)

    def ready(self) -> None:
        """Undoes what an earlier step may have set on the object."""
        self.row_factory = tuple_row
        self.cursor_factory = _StepCursorSync
        self.prepare_threshold = _PREPARE_AFTER if self.own_session else None


def milliseconds(seconds: float) -> str:
    """Seconds as a setting of Postgres in milliseconds: 1 at least, as 0 means for ever."""
    return str(max(1, min(round(seconds * 1000), 2**31 - 1)))


def _setting_up(sql: Catalog, pid: int, idle: float) -> Request:
    given = {**_BOUNDS, "idle_in_transaction_session_timeout": milliseconds(idle)}
    return sql["transacting/session"].bind(pid=pid, names=list(given), values=list(given.values()))


async def open_step(url: str, application_name: str, sql: Catalog, idle: float) -> StepConnection:
    """A connection for async steps; ``idle`` seconds may pass between two statements of a transaction.

    Raises:
        psycopg.OperationalError: when it can't be made.
    """
    connection = await StepConnection.connect(
        **_arguments(url, application_name), autocommit=True, prepare_threshold=None
    )
    try:
        connection.prepared = set()
        connection.own_session = False  # nothing is prepared until that is known
        rows = await run(connection, _setting_up(sql, connection.info.backend_pid, idle))
        connection.own_session = rows[0][0]
    except BaseException:
        await connection.discard()
        raise
    return connection


def open_step_sync(url: str, application_name: str, sql: Catalog, idle: float) -> StepConnectionSync:
    """The blocking twin, for plain functions.

    Raises:
        psycopg.OperationalError: when it can't be made.
    """
    connection = StepConnectionSync.connect(
        **_arguments(url, application_name), autocommit=True, prepare_threshold=None
    )
    try:
        connection.prepared = set()
        connection.own_session = False
        rows = run_sync(connection, _setting_up(sql, connection.info.backend_pid, idle))
        connection.own_session = rows[0][0]
    except BaseException:
        connection.discard()
        raise
    return connection


def is_usable(connection: StepConnection | StepConnectionSync) -> bool:
    """Whether it is where it was left, and nothing has come on it: what has is the word of its end."""
    wanted = TransactionStatus.INTRANS if connection.begun else TransactionStatus.IDLE
    if connection.closed or connection.info.transaction_status is not wanted:
        return False
    quiet = select.poll()
    quiet.register(connection.pgconn.socket, select.POLLIN)
    return not quiet.poll(0)


# One transaction ------------------------------------------------------------------------------------

COMMIT, ROLLBACK = b"COMMIT", b"ROLLBACK"


def _marking(mark: int) -> bytes:
    return b"SET LOCAL gen_durable.step = '%d'" % mark


def _opening(connection: StepConnection | StepConnectionSync, mark: int, idle: float) -> bytes:
    """The transaction's first words, in one message; behind a pooler nothing can be set for longer than it."""
    words = [b"BEGIN", _marking(mark)]
    if not connection.own_session:
        words.insert(1, f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds(idle)}".encode())
    if connection.begun:  # for another, which has given up
        words.insert(0, ROLLBACK)
    return b";".join(words)


def take_over(connection: StepConnection | StepConnectionSync) -> None:
    """Makes it the connection of the step that comes next: what was begun is that one's, or undone first."""
    connection.ready()
    connection.begun, connection.turn = False, None


async def begin(connection: StepConnection, mark: int, idle: float) -> None:
    """Begins the transaction of the instance ``mark``."""
    words = _opening(connection, mark, idle)
    take_over(connection)
    await exchanged(connection, asking(connection.pgconn, words))


def begin_sync(connection: StepConnectionSync, mark: int, idle: float) -> None:
    """The blocking twin."""
    words = _opening(connection, mark, idle)
    take_over(connection)
    with connection.lock:
        connection.wait(asking(connection.pgconn, words))


def steady(sql: Catalog) -> Request:
    """What comes before our own statements."""
    return sql["transacting/steady"].bind()


def _unprepared(connection: StepConnection | StepConnectionSync, requests: list[Request]) -> bytes:
    """What prepares the statements that this session does not have yet."""
    texts = []
    for request in requests:
        name, text = request.statement.name, request.statement.text
        if name not in connection.prepared:
            texts.append(b'PREPARE "%b" AS %b' % (name.encode(), text))
    return b";".join(texts)


def _committing(
    connection: StepConnection | StepConnectionSync, requests: list[Request], ahead: int | None
) -> Exchange:
    # Nothing in the words behind the COMMIT takes a snapshot or a lock.
    behind = [] if ahead is None else [b"BEGIN", _marking(ahead)]
    return executing(connection.pgconn, requests, [COMMIT], behind)


async def commit(connection: StepConnection, requests: list[Request], ahead: int | None = None) -> list[list[Row]]:
    """Runs statements of ours and commits, in one round trip where the session is the client's own.

    In the same it begins the transaction of the instance ``ahead``, and notes that (``begun``).
    """
    if not connection.own_session:
        answers = [await run(connection, request) for request in requests]
        await run(connection, COMMIT)
        return answers
    if missing := _unprepared(connection, requests):
        await run(connection, missing)
        connection.prepared.update(request.statement.name for request in requests)
    results = await exchanged(connection, _committing(connection, requests, ahead))
    connection.begun = ahead is not None  # where that failed its state shows it: then it is not used
    return [numbers(result) for result in results]


def commit_sync(connection: StepConnectionSync, requests: list[Request], ahead: int | None = None) -> list[list[Row]]:
    """The blocking twin."""
    if not connection.own_session:
        answers = [run_sync(connection, request) for request in requests]
        run_sync(connection, COMMIT)
        return answers
    if missing := _unprepared(connection, requests):
        run_sync(connection, missing)
        connection.prepared.update(request.statement.name for request in requests)
    with connection.lock:
        results = connection.wait(_committing(connection, requests, ahead))
    connection.begun = ahead is not None
    return [numbers(result) for result in results]


async def run(connection: StepConnection, request: Request | bytes) -> list[Row]:
    """Runs one statement of ours, or one word."""
    if isinstance(request, bytes):
        await AsyncCursor(connection).execute(request, prepare=False)
        return []
    cursor = psycopg.AsyncRawCursor(connection, row_factory=tuple_row)
    await cursor.execute(request.statement.text, request.parameters, prepare=connection.own_session)
    return await cursor.fetchall() if has_rows(cursor) else []


def run_sync(connection: StepConnectionSync, request: Request | bytes) -> list[Row]:
    """The blocking twin."""
    if isinstance(request, bytes):
        Cursor(connection).execute(request, prepare=False)
        return []
    cursor = psycopg.RawCursor(connection, row_factory=tuple_row)
    cursor.execute(request.statement.text, request.parameters, prepare=connection.own_session)
    return cursor.fetchall() if has_rows(cursor) else []
