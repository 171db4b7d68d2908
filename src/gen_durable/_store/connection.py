"""Connections to Postgres: how they are made, set up, described in errors, and cut."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import AsyncConnection, Connection, conninfo, generators
from psycopg.abc import PQGen
from psycopg.adapt import Loader, PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import tuple_row

from gen_durable._store.operation import Operation, Request, Row, Statement, drive, drive_sync
from gen_durable.errors import ConfigurationError, DatabaseError, DatabaseUnreachable

__all__ = [
    "RawJson",
    "cut",
    "describe",
    "fetch",
    "fetch_at_once",
    "fetch_sync",
    "forbidden",
    "has_rows",
    "open_connection",
    "open_sync",
    "parse_url",
    "set_up",
    "set_up_sync",
    "unreachable",
]

CONNECT_TIMEOUT = 10

# A worker's statements are meant to walk one index each. Their plans must not depend on statistics, which for a queue
# are wrong most of the time: so the other ways are closed, and one generic plan serves for all parameters.
_STEADY = {
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_sort": "off",
    "enable_incremental_sort": "off",
    "enable_indexscan": "on",
    "enable_nestloop": "on",
    "enable_tidscan": "on",
    "search_path": "pg_catalog",
}
# The client's statements join a call's rows by hash, but they too must not remember that a table was once empty.
_CLIENT = {"plan_cache_mode": "force_generic_plan", "jit": "off", "enable_seqscan": "off"}
# The server must notice a client that is gone, and must not let a lock of ours wait or stay for ever.
_BOUNDS = {
    "TimeZone": "UTC",
    # What looks behind a lock is to see what was committed while it waited, whatever the database's default is.
    "default_transaction_isolation": "read committed",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "3",
    "tcp_keepalives_count": "3",
    # A statement whose answer its client does not take (stopped, or cut off) stays open, and keeps its rows locked.
    "tcp_user_timeout": "10s",
    "lock_timeout": "10s",
    "statement_timeout": "60s",
    "idle_in_transaction_session_timeout": "60s",
}

_WHOSE = Statement("set_up", b"SELECT pg_backend_pid()", ())
_SET = Statement(
    "set_up", b"SELECT set_config(name, value, false) FROM unnest($1::text[], $2::text[]) AS s (name, value)", ()
)


class RawJson(Loader):
    """Loads json as the bytes that came: the codec decodes them once, into the right types."""

    def load(self, data: Any) -> bytes:
        """The bytes as they are."""
        return bytes(data)


def parse_url(url: str) -> str:
    """A connection string that libpq reads, from a URL or ``key=value`` string.

    SQLAlchemy's form with a driver (``postgresql+psycopg://``) is accepted too.

    Raises:
        ConfigurationError: when it can't be parsed; the message does not repeat the string, which may hold a password.
    """
    if not isinstance(url, str):
        raise ConfigurationError(f"the database URL is a {type(url).__name__}: give a string")
    plain = re.sub(r"\A(postgres(?:ql)?)\+\w+://", r"\1://", url)
    reason = ""
    try:
        parsed = conninfo.make_conninfo(plain)
        if _credible(plain, conninfo.conninfo_to_dict(parsed)):
            return parsed
    except psycopg.Error as error:
        reason = _harmless(plain, str(error))
    raise ConfigurationError(
        f"the database URL can't be parsed{reason}; it should look like "
        "postgresql://user:password@host:5432/database (percent-encode special characters of the password)"
    )


def _parts(url: str) -> tuple[str, str]:
    """What libpq takes for a URL's hosts and database, as written, and its query; ``key=value`` is all query."""
    if not re.match(r"postgres(ql)?://", url):
        return "", url
    place, _, query = re.sub(r"\A[^@/]*@", "", url.partition("://")[2]).partition("?")
    return place, query


def _credible(url: str, given: Mapping[str, Any]) -> bool:
    """Whether libpq read what was meant: a bare @ or / in a password becomes a part of the host, port or database."""
    hosts = str(given.get("host") or "").split(",")
    ports = str(given.get("port") or "").split(",")
    return (
        "@" not in _parts(url)[0]
        and all("/" not in host or host.startswith(("/", "@")) for host in hosts)
        and all(not port.strip() or (port.strip().isascii() and port.strip().isdigit()) for port in ports)
    )


def _harmless(url: str, message: str) -> str:
    """libpq's reason, where it is an unknown option, and its name can't be a piece of a password."""
    query = _parts(url)[1]
    found = re.search(r'(invalid (?:connection option|URI query parameter):? "\w+")', message)
    return f" ({found[1]})" if found and "@" not in query and "password" not in query.lower() else ""


def describe(url: str) -> str:
    """Where a connection string leads, without its password: for messages."""
    try:
        given = conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        given = {}
    host = given.get("host") or given.get("hostaddr") or os.environ.get("PGHOST") or "localhost"
    port = given.get("port") or os.environ.get("PGPORT") or 5432
    user = given.get("user") or os.environ.get("PGUSER") or "the current user"
    database = given.get("dbname") or os.environ.get("PGDATABASE") or user
    return f"host {host}, port {port}, database {database}, user {user}"


def unreachable(url: str, error: BaseException) -> DatabaseUnreachable:
    """The error that says which database can't be reached, and why."""
    reason = " ".join(str(error).split()).rstrip(".?") or type(error).__name__
    with contextlib.suppress(psycopg.Error):
        password = conninfo.conninfo_to_dict(url).get("password")
        if password:
            reason = reason.replace(str(password), "***")
    return DatabaseUnreachable(
        f"no connection to the database ({describe(url)}): {reason}. "
        "Check that the server runs and that the URL in use is the one you mean"
    )


def forbidden(url: str, error: psycopg.Error) -> DatabaseError:
    """The error that says which right is missing, and where."""
    return DatabaseError(
        f"the database user may not do this ({describe(url)}): {str(error).strip()}. "
        "Grant it what the operations guide lists, or use the role that migrated"
    )


def _arguments(url: str, application_name: str) -> dict[str, Any]:
    given = conninfo.conninfo_to_dict(url)
    given["client_encoding"] = "UTF8"  # json is sent and taken as bytes, whatever the database's own encoding
    given.setdefault("connect_timeout", CONNECT_TIMEOUT)
    given.setdefault("application_name", application_name)
    given.setdefault("keepalives_idle", 10)
    given.setdefault("keepalives_interval", 3)
    given.setdefault("keepalives_count", 3)
    given.setdefault("tcp_user_timeout", 20_000)
    return given


class OwnConnection(AsyncConnection[Row]):
    """A connection of ours, and what is prepared on it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.names: dict[tuple[bytes, tuple[int, ...] | None], bytes] = {}  # by text and types
        self.numbers = itertools.count()
        self.lent_at = 0.0  # when its pool gave it
        self.lent_by: Any = None  # that pool


class OwnConnectionSync(Connection[Row]):
    """The blocking twin of :class:`OwnConnection`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.names: dict[tuple[bytes, tuple[int, ...] | None], bytes] = {}
        self.numbers = itertools.count()
        self.lent_by: Any = None


async def open_connection(url: str, application_name: str) -> AsyncConnection[Row]:
    """An autocommit connection of ours; until :func:`set_up` nothing is prepared on it: a pooler may be in between.

    Raises:
        psycopg.OperationalError: when it can't be made.
    """
    connection = await OwnConnection.connect(
        **_arguments(url, application_name), autocommit=True, row_factory=tuple_row, prepare_threshold=None
    )
    connection.adapters.register_loader("jsonb", RawJson)
    return connection


def open_sync(url: str, application_name: str) -> Connection[Row]:
    """The blocking twin of :func:`open_connection`.

    Raises:
        psycopg.OperationalError: when it can't be made.
    """
    connection = OwnConnectionSync.connect(
        **_arguments(url, application_name), autocommit=True, row_factory=tuple_row, prepare_threshold=None
    )
    connection.adapters.register_loader("jsonb", RawJson)
    return connection


async def set_up(connection: AsyncConnection[Row], *, steady: bool, patience: float | None = None) -> bool:
    """Sets a session up, where it is one: answers whether the session is the client's own.

    Behind a pooler in transaction mode the next transaction may go to another server process: there nothing may be set,
    prepared, locked or listened to. It shows in the process number that the server gives. With ``patience`` statements
    wait no longer than so many seconds for a lock.
    """
    return await drive(_setting_up(connection, steady, patience), lambda request: fetch(connection, request))


def set_up_sync(connection: Connection[Row]) -> bool:
    """The blocking twin of :func:`set_up`, for a client's session."""
    return drive_sync(_setting_up(connection, False), lambda request: fetch_sync(connection, request))


def _setting_up(
    connection: AsyncConnection[Row] | Connection[Row], steady: bool, patience: float | None = None
) -> Operation[bool]:
    rows = yield Request(_WHOSE, ())
    if rows[0][0] != connection.info.backend_pid:
        return False
    settings = {**_BOUNDS, **(_STEADY if steady else _CLIENT)}
    if patience is not None:
        settings["lock_timeout"] = f"{1000 * patience:.0f}ms"
    yield Request(_SET, (list(settings), list(settings.values())))
    connection.prepare_threshold = 0
    return True


async def fetch(connection: AsyncConnection[Row], request: Request) -> list[Row]:
    """Runs one request on an async connection."""
    if isinstance(connection, OwnConnection) and connection.prepare_threshold == 0:  # else behind a pooler
        async with connection.lock:
            return await connection.wait(_running(connection, request))
    cursor = psycopg.AsyncRawCursor(connection, row_factory=tuple_row)
    await cursor.execute(request.statement.text, request.parameters)
    return await cursor.fetchall() if has_rows(cursor) else []


async def fetch_at_once(connection: AsyncConnection[Row], requests: list[Request]) -> list[list[Row]]:
    """Runs requests on an autocommit connection in one round trip and one transaction: a pipeline is one up to its end.

    Raises:
        psycopg.Error: of the first statement that failed; nothing has taken effect.
    """
    cursors = []
    async with connection.pipeline():
        for request in requests:
            cursor = psycopg.AsyncRawCursor(connection, row_factory=tuple_row)
            await cursor.execute(request.statement.text, request.parameters)
            cursors.append(cursor)
    return [await cursor.fetchall() if has_rows(cursor) else [] for cursor in cursors]


def fetch_sync(connection: Connection[Row], request: Request) -> list[Row]:
    """Runs one request on a blocking connection."""
    if isinstance(connection, OwnConnectionSync) and connection.prepare_threshold == 0:
        with connection.lock:
            return connection.wait(_running(connection, request))
    cursor = psycopg.RawCursor(connection, row_factory=tuple_row)
    cursor.execute(request.statement.text, request.parameters)
    return cursor.fetchall() if has_rows(cursor) else []


def _running(connection: OwnConnection | OwnConnectionSync, request: Request) -> PQGen[list[Row]]:
    """Runs a prepared statement as a cursor does, at half of what that costs the client."""
    pgconn = connection.pgconn
    text, parameters = request.statement.text, request.parameters
    transformer = Transformer(connection)
    values = transformer.dump_sequence(parameters, [PyFormat.AUTO] * len(parameters))
    types, formats = transformer.types, transformer.formats
    idle = pgconn.transaction_status == TransactionStatus.IDLE
    name = connection.names.get((text, types))
    known = name is not None
    if name is None:
        name = b"gen_durable_%d" % next(connection.numbers)
        pgconn.send_prepare(name, text, types)
        _last(connection, (yield from generators.execute(pgconn)))
        connection.names[text, types] = name
    pgconn.send_query_prepared(name, values, formats)
    try:
        result = _last(connection, (yield from generators.execute(pgconn)))
    except psycopg.errors.InvalidSqlStatementName:
        connection.names.clear()  # somebody has deallocated them all
        if not (known and idle):
            raise
        return (yield from _running(connection, request))
    if result.status != ExecStatus.TUPLES_OK:
        return []
    transformer.set_pgresult(result)
    return transformer.load_rows(0, result.ntuples, tuple)


def _last(connection: OwnConnection | OwnConnectionSync, results: list[PGresult]) -> PGresult:
    """The answer; raises the error that it is."""
    for result in results:
        if result.status == ExecStatus.FATAL_ERROR:
            raise error_from_result(result, encoding=connection.info.encoding)
    if not results or results[-1].status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
        found = ExecStatus(results[-1].status).name if results else "nothing"
        raise psycopg.InternalError(f"a statement is answered with {found}")
    return results[-1]


def has_rows(cursor: psycopg.AsyncCursor[Row] | psycopg.Cursor[Row]) -> bool:
    """Whether its answer is a table; asked of ``description``, that would make objects of all columns first."""
    return cursor.pgresult is not None and cursor.pgresult.status == ExecStatus.TUPLES_OK


def cut(connection: AsyncConnection[Row] | Connection[Row]) -> None:
    """Ends a connection's socket at once, whatever it waits for.

    A statement in flight then fails immediately, also on a link that has gone silent, where a polite cancel would wait.
    """
    with contextlib.suppress(psycopg.Error, OSError):
        duplicate = socket.socket(fileno=os.dup(connection.pgconn.socket))
        with duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)
