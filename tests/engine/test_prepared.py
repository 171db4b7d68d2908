"""Statements that go without a cursor: the same answers and errors as with one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest

from gen_durable._store.connection import fetch, fetch_sync, open_connection, open_sync, set_up, set_up_sync
from gen_durable._store.operation import Request, Statement

Run = Callable[..., Any]


@pytest.fixture(params=["async", "blocking"])
async def connection(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[Any]:
    if request.param == "async":
        opened: Any = await open_connection(database_url, "test")
        assert await set_up(opened, steady=False)
        yield opened
        await opened.close()
    else:
        blocking = open_sync(database_url, "test")
        assert set_up_sync(blocking)
        yield blocking
        blocking.close()


@pytest.fixture
def run(connection: Any) -> Run:
    async def run(text: str, *parameters: Any) -> list[Any]:
        request = Request(Statement(text, text.encode(), ()), parameters)
        if isinstance(connection, psycopg.Connection):
            return await asyncio.to_thread(fetch_sync, connection, request)
        return await fetch(connection, request)

    return run


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("text", ""), ("text", "é\n'\"\\\x7f\U0001f600"), ("int", -(2**31)), ("bigint", 2**63 - 1), ("int", None),
        ("boolean", True), ("boolean", False), ("float8", 0.1), ("float8", 1e-300), ("float8", float("inf")),
        ("text[]", ["a", 'b"', ""]), ("text[]", []), ("bigint[]", [1, 2]), ("smallint", 7),
    ],
)  # fmt: skip
async def test_values_come_back_as_they_went(run: Run, kind: str, value: Any) -> None:
    for _ in range(3):
        assert await run(f"SELECT $1::{kind}, 1", value) == [(value, 1)]


async def test_json_comes_as_bytes(run: Run) -> None:
    assert await run("SELECT $1::jsonb", '{"a":[1]}') == [(b'{"a": [1]}',)]


async def test_a_nul_is_refused_and_not_cut_off(run: Run) -> None:
    with pytest.raises(psycopg.DataError, match="NUL"):
        await run("SELECT $1::text", "a\0b")
    assert await run("SELECT 1") == [(1,)]


async def test_errors_are_those_of_a_cursor(run: Run) -> None:
    """By class, SQLSTATE and message; and the connection is still good. Also where it fails at its preparation."""
    with pytest.raises(psycopg.errors.DivisionByZero, match="division by zero"):
        await run("SELECT 1 / $1::int", 0)
    for _ in range(2):
        with pytest.raises(psycopg.errors.UndefinedTable) as raised:
            await run("SELECT * FROM nowhere_at_all")
        assert raised.value.diag.sqlstate == "42P01"
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        await run("SELECT $1::jsonb", "{")
    assert await run("SELECT 1 / $1::int", 1) == [(1,)]


async def test_statements_without_rows(run: Run) -> None:
    assert await run("CREATE TEMPORARY TABLE here (n int)") == []
    assert await run("INSERT INTO here VALUES ($1::int)", 1) == []
    assert await run("BEGIN") == []
    assert await run("DELETE FROM here") == []
    assert await run("ROLLBACK") == []
    assert await run("SELECT n FROM here") == [(1,)]


async def test_what_somebody_deallocates_is_prepared_again(run: Run) -> None:
    for _ in range(2):
        assert await run("SELECT 1") == [(1,)]
        assert await run("SELECT 2") == [(2,)]
        await run("DEALLOCATE ALL")
    await run("BEGIN")
    await run("DEALLOCATE  ALL")
    with pytest.raises(psycopg.errors.InvalidSqlStatementName):
        await run("SELECT 1")  # the transaction is lost
    await run("ROLLBACK")
    assert await run("SELECT 1") == [(1,)]


async def test_notifications_that_come_with_an_answer_are_passed_on(connection: Any, run: Run, sql: Any) -> None:
    """R19: none is lost that arrives while a statement is under way."""
    heard: list[str] = []
    connection.add_notify_handler(lambda notice: heard.append(notice.payload))
    await run("LISTEN somewhere")
    await run("SELECT pg_notify('somewhere', 'one')")
    await run("SELECT 1")
    assert heard == ["one"]


async def test_a_connection_that_is_ended_amid_a_statement_says_so(connection: Any, run: Run, sql: Any) -> None:
    """R27: with the server's own word."""
    pid = connection.info.backend_pid
    slow = asyncio.create_task(run("SELECT pg_sleep($1::int)", 60))
    query = "SELECT pg_terminate_backend(%s, 5000) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
    while not await sql(query, pid, pid):
        await asyncio.sleep(0.01)
    with pytest.raises(psycopg.errors.AdminShutdown):
        await slow
    assert connection.closed


async def test_a_cancelled_statement_ends_on_the_server_and_leaves_a_good_connection(database_url: str) -> None:
    connection = await open_connection(database_url, "test")
    assert await set_up(connection, steady=False)
    request = Request(Statement("slow", b"SELECT pg_sleep($1::int)", ()), (60,))
    async with asyncio.timeout(20):
        task = asyncio.create_task(fetch(connection, request))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await fetch(connection, Request(Statement("one", b"SELECT 1", ()), ())) == [(1,)]
    await connection.close()
