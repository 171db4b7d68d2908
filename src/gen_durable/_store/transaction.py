"""The connections of transactional steps: psycopg's, with ordinary settings; a step can't commit them by itself."""

from __future__ import annotations

import asyncio
import re
import select
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NoReturn

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.errors import error_from_result
from psycopg.pq import Escaping, ExecStatus, TransactionStatus
from psycopg.rows import tuple_row
from psycopg.sql import Literal

from gen_durable._store.connection import _arguments, has_rows
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
    "is_idle",
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


def is_idle(connection: StepConnection | StepConnectionSync) -> bool:
    """Whether it is in no transaction, and nothing has come on it: what has is the word of its end."""
    if connection.closed or connection.info.transaction_status is not TransactionStatus.IDLE:
        return False
    quiet = select.poll()
    quiet.register(connection.pgconn.socket, select.POLLIN)
    return not quiet.poll(0)


# One transaction ------------------------------------------------------------------------------------

COMMIT, ROLLBACK = b"COMMIT", b"ROLLBACK"


def _opening(connection: StepConnection | StepConnectionSync, mark: int, idle: float) -> bytes:
    """The transaction's first words, in one message; behind a pooler nothing can be set for longer than it."""
    bound = "" if connection.own_session else f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds(idle)};"
    return f"BEGIN; {bound} SET LOCAL gen_durable.step = '{mark:d}'".encode()


async def begin(connection: StepConnection, mark: int, idle: float) -> None:
    """Begins the transaction of the instance ``mark``."""
    connection.ready()
    await _exchange(connection, _opening(connection, mark, idle))


def begin_sync(connection: StepConnectionSync, mark: int, idle: float) -> None:
    """The blocking twin."""
    connection.ready()
    Cursor(connection).execute(_opening(connection, mark, idle), prepare=False)


def steady(sql: Catalog) -> Request:
    """What comes before our own statements."""
    return sql["transacting/steady"].bind()


# Our statements and the COMMIT go in one message of the simple protocol, whose statements are skipped after one that
# fails. A pipeline would be the same, and costs the client more than a trip for each of a handful of statements does.


def _unprepared(connection: StepConnection | StepConnectionSync, requests: list[Request]) -> bytes:
    """What prepares the statements that this session does not have yet."""
    texts = []
    for request in requests:
        name, text = request.statement.name, request.statement.text
        if name not in connection.prepared:
            texts.append(b'PREPARE "%b" AS %b' % (name.encode(), text))
    return b";".join(texts)


def _literal(value: Any, escape: Callable[[bytes], Any]) -> bytes:
    if isinstance(value, str):
        return bytes(escape(value.encode()))
    if value is None:
        return b"NULL"
    if type(value) in (int, float):
        return repr(value).encode()
    return b"'{}'" if value == [] else Literal(value).as_bytes(None)


def _script(connection: StepConnection | StepConnectionSync, requests: list[Request]) -> bytes:
    """Executes prepared statements and commits."""
    escape = Escaping(connection.pgconn).escape_literal
    words = []
    for request in requests:
        values = b", ".join([_literal(value, escape) for value in request.parameters])
        words.append(b'EXECUTE "%b"%b' % (request.statement.name.encode(), b"(%b)" % values if values else b""))
    return b";".join([*words, COMMIT])


async def _exchange(connection: StepConnection, text: bytes) -> list[Any]:
    """Sends one message and takes what comes back: the way of the hot path, at a third of the cost of a cursor.

    Raises:
        psycopg.Error: of the statement that failed; or the connection broke.
    """
    pgconn = connection.pgconn
    results: list[Any] = []
    async with connection.lock:
        pgconn.send_query(text)
        try:
            while pgconn.flush():
                await _ready(pgconn.socket, write=True)
                pgconn.consume_input()
            while True:
                while pgconn.is_busy():
                    await _ready(pgconn.socket)
                    pgconn.consume_input()
                if (result := pgconn.get_result()) is None:
                    break
                results.append(result)
        except psycopg.OperationalError:
            _raise_first(results)  # the server's last word says more than that it hung up
            raise
    _raise_first(results)
    return results


def _raise_first(results: list[Any]) -> None:
    for result in results:
        if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            raise error_from_result(result)


async def _ready(socket: int, *, write: bool = False) -> None:
    """Waits until a socket has something to read, or takes what is to be written as well."""
    loop = asyncio.get_running_loop()
    waiting = loop.create_future()
    loop.add_reader(socket, _wake, waiting)
    if write:
        loop.add_writer(socket, _wake, waiting)
    try:
        await waiting
    finally:
        loop.remove_reader(socket)
        if write:
            loop.remove_writer(socket)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _numbers(result: Any) -> list[Row]:
    """Rows of whole numbers, which is all that our statements answer with there."""
    columns = range(result.nfields)
    rows = [[result.get_value(row, column) for column in columns] for row in range(result.ntuples)]
    return [tuple(None if value is None else int(value) for value in row) for row in rows]


async def commit(connection: StepConnection, requests: list[Request]) -> list[list[Row]]:
    """Runs statements of ours and commits, in one round trip where the session is the client's own."""
    if not connection.own_session:
        answers = [await run(connection, request) for request in requests]
        await run(connection, COMMIT)
        return answers
    if missing := _unprepared(connection, requests):
        await run(connection, missing)
        connection.prepared.update(request.statement.name for request in requests)
    results = await _exchange(connection, _script(connection, requests))
    return [_numbers(result) for result in results[: len(requests)]]


def commit_sync(connection: StepConnectionSync, requests: list[Request]) -> list[list[Row]]:
    """The blocking twin."""
    if not connection.own_session:
        answers = [run_sync(connection, request) for request in requests]
        run_sync(connection, COMMIT)
        return answers
    if missing := _unprepared(connection, requests):
        run_sync(connection, missing)
        connection.prepared.update(request.statement.name for request in requests)
    cursor = Cursor(connection, row_factory=tuple_row)
    cursor.execute(_script(connection, requests), prepare=False)
    answers = []
    for _ in requests:
        answers.append(cursor.fetchall() if has_rows(cursor) else [])
        cursor.nextset()
    return answers


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
