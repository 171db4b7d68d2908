"""Messages of ours on a connection of psycopg's, for the hot path: by libpq itself, at a third of the cost of a cursor.

Several statements go at once, as a pipeline: what follows one that fails is skipped by the server. The pipeline is
libpq's own. psycopg's would cost the client more than a trip for each of a handful of statements does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

import psycopg
from psycopg import AsyncConnection
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.waiting import Wait

from gen_durable._store.operation import Request, Row

__all__ = ["Exchange", "asking", "exchanged", "executing", "numbers"]

_SPEAK = b"SET LOCAL client_encoding = 'UTF8'"

Exchange: TypeAlias = Generator[Wait, object, list[Any]]  # yields what to wait for


def _text(value: Any) -> Any:
    """A parameter in Postgres's text form."""
    if isinstance(value, str):
        return value.encode()
    if value is None:
        return None
    if type(value) in (int, float):
        return repr(value).encode()
    return b"{}" if value == [] else Transformer().get_dumper(value, PyFormat.TEXT).dump(value)


def asking(pgconn: Any, text: bytes) -> Exchange:
    """Sends words, and takes the answers."""
    pgconn.send_query(text)
    results: list[Any] = []
    yield from _sent(pgconn)
    while (result := (yield from _received(pgconn, results))) is not None:
        results.append(result)
    _raise_first(results)
    return results


def executing(pgconn: Any, requests: Sequence[Request], words: Sequence[bytes], behind: Sequence[bytes]) -> Exchange:
    """Executes prepared statements (under their names), then words, then what may fail; answers the statements.

    The parameters are sent as UTF-8, whatever encoding the session speaks.

    Raises:
        psycopg.Error: a statement failed, or one of the words; or the connection broke.
    """
    first = [] if pgconn.parameter_status(b"client_encoding") == b"UTF8" else [_SPEAK]
    pgconn.enter_pipeline_mode()
    for word in first:
        pgconn.send_query_params(word, None)
    for request in requests:
        pgconn.send_query_prepared(request.statement.name.encode(), [_text(value) for value in request.parameters])
    for word in (*words, *behind):
        pgconn.send_query_params(word, None)
    pgconn.pipeline_sync()
    results: list[Any] = []
    yield from _sent(pgconn)
    while True:
        result = yield from _received(pgconn, results)
        if result is None:  # behind the answer to each
            continue
        if result.status == ExecStatus.PIPELINE_SYNC:
            break
        results.append(result)
    pgconn.exit_pipeline_mode()
    own = len(first) + len(requests)
    _raise_first(results[: own + len(words)])
    return results[len(first) : own]


def _sent(pgconn: Any) -> Generator[Wait, object, None]:
    while pgconn.flush():
        yield Wait.RW
        pgconn.consume_input()


def _received(pgconn: Any, before: list[Any]) -> Generator[Wait, object, Any]:
    """The next answer.

    Raises:
        psycopg.Error: the connection broke; what the server said last, if it did, says more than that.
    """
    try:
        while pgconn.is_busy():
            yield Wait.R
            pgconn.consume_input()
    except psycopg.OperationalError:
        _raise_first(before)
        raise
    result = pgconn.get_result()
    if result is None and pgconn.status == ConnStatus.BAD:
        _raise_first(before)
        raise psycopg.OperationalError("the connection is lost")
    return result


def _raise_first(results: list[Any]) -> None:
    for result in results:
        if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            raise error_from_result(result)


async def exchanged(connection: AsyncConnection[Any], exchange: Exchange) -> list[Any]:
    """Drives an exchange on an async connection; a blocking one has ``wait``."""
    async with connection.lock:
        try:
            wait = next(exchange)
            while True:
                await _ready(connection.pgconn.socket, write=wait == Wait.RW)
                wait = exchange.send(None)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # a generator's return value is untyped here


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


def numbers(result: Any) -> list[Row]:
    """Rows of whole numbers, which is all that our statements answer with there."""
    columns = range(result.nfields)
    rows = [[result.get_value(row, column) for column in columns] for row in range(result.ntuples)]
    return [tuple(None if value is None else int(value) for value in row) for row in rows]
