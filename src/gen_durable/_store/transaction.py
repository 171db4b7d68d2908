"""The connections of transactional steps: psycopg's, with ordinary settings; a step can't commit them by itself."""

from __future__ import annotations

import re
import select
from typing import Any, NoReturn

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from gen_durable._store.connection import _STEADY as ENGINE_STEADY
from gen_durable._store.connection import _arguments
from gen_durable._store.operation import Catalog, Request, Row
from gen_durable.errors import TransactionEnded

__all__ = [
    "CLAIM_LOST",
    "COMMIT",
    "MARK_LOST",
    "ROLLBACK",
    "StepConnection",
    "StepConnectionSync",
    "begin",
    "begin_sync",
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
# From here on the step's code is over. Not the search path: a deferred trigger of the user's may need it.
_STEADY = {name: value for name, value in ENGINE_STEADY.items() if name != "search_path"} | {"lock_timeout": "10s"}
_NAMES, _VALUES = list(_STEADY), list(_STEADY.values())
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


class StepConnection(AsyncConnection[Any]):
    """What an async step gets as ``ctx.conn``."""

    own_session = True  # of the server's, not of a pooler's

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

    def ready(self) -> None:
        """Undoes what an earlier step may have set on the object."""
        self.row_factory = tuple_row
        self.cursor_factory = _StepCursor
        self.prepare_threshold = _PREPARE_AFTER if self.own_session else None


class StepConnectionSync(Connection[Any]):
    """What a plain function gets as ``ctx.conn``."""

    own_session = True

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

    def ready(self) -> None:
        """Undoes what an earlier step may have set on the object."""
        self.row_factory = tuple_row
        self.cursor_factory = _StepCursorSync
        self.prepare_threshold = _PREPARE_AFTER if self.own_session else None


def _bounds(idle: float) -> tuple[list[str], list[str]]:
    given = {**_BOUNDS, "idle_in_transaction_session_timeout": milliseconds(idle)}
    return list(given), list(given.values())


def milliseconds(seconds: float) -> str:
    """Seconds as a setting of Postgres in milliseconds: 1 at least, as 0 means for ever."""
    return str(max(1, min(round(seconds * 1000), 2**31 - 1)))


_PID = b"SELECT pg_backend_pid()"
_SET = b"SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS s (name, value)"


async def open_step(url: str, application_name: str, idle: float) -> StepConnection:
    """A connection for async steps; ``idle`` seconds may pass between two statements of a transaction.

    Raises:
        psycopg.OperationalError: when it can't be made.
    """
    connection = await StepConnection.connect(
        **_arguments(url, application_name), autocommit=True, prepare_threshold=None
    )
    try:
        row = await (await connection.execute(_PID)).fetchone()
        connection.own_session = row is not None and row[0] == connection.info.backend_pid
        if connection.own_session:
            await connection.execute(_SET, _bounds(idle))
    except BaseException:
        await connection.discard()
        raise
    return connection


def open_step_sync(url: str, application_name: str, idle: float) -> StepConnectionSync:
    """The blocking twin, for plain functions.

    Raises:
        psycopg.OperationalError: when it can't be made.
    """
    connection = StepConnectionSync.connect(
        **_arguments(url, application_name), autocommit=True, prepare_threshold=None
    )
    try:
        row = connection.execute(_PID).fetchone()
        connection.own_session = row is not None and row[0] == connection.info.backend_pid
        if connection.own_session:
            connection.execute(_SET, _bounds(idle))
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
    await AsyncCursor(connection).execute(_opening(connection, mark, idle), prepare=False)


def begin_sync(connection: StepConnectionSync, mark: int, idle: float) -> None:
    """The blocking twin."""
    connection.ready()
    Cursor(connection).execute(_opening(connection, mark, idle), prepare=False)


def steady(sql: Catalog) -> Request:
    """What comes before our own statements."""
    return sql["transacting/steady"].bind(names=_NAMES, values=_VALUES)


async def run(connection: StepConnection, request: Request | bytes) -> list[Row]:
    """Runs one statement of ours, or one word."""
    if isinstance(request, bytes):
        await AsyncCursor(connection).execute(request, prepare=False)
        return []
    cursor = psycopg.AsyncRawCursor(connection, row_factory=tuple_row)
    await cursor.execute(request.statement.text, request.parameters, prepare=connection.own_session)
    return await cursor.fetchall() if cursor.description else []


def run_sync(connection: StepConnectionSync, request: Request | bytes) -> list[Row]:
    """The blocking twin."""
    if isinstance(request, bytes):
        Cursor(connection).execute(request, prepare=False)
        return []
    cursor = psycopg.RawCursor(connection, row_factory=tuple_row)
    cursor.execute(request.statement.text, request.parameters, prepare=connection.own_session)
    return cursor.fetchall() if cursor.description else []
