"""Statements that go in one round trip: one transaction, and each sees what the one before has done."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from sql_stage import Stage

from gen_durable._store.connection import fetch_at_once
from gen_durable._store.operation import Request, Statement


def ask(stage: Stage, text: str, *values: object) -> Request:
    return Request(Statement("test", text.replace("{schema}", stage.schema).encode(), ()), values)


async def test_they_are_one_transaction(stage: Stage) -> None:
    """R23: an outcome and what its slot brings; and a statement sees what the one before has written."""
    connection = await stage.connect()
    rows = await fetch_at_once(
        connection,
        [
            ask(stage, "INSERT INTO {schema}.knocks (line) VALUES ($1) RETURNING txid_current()", "ca"),
            ask(stage, "SELECT count(*), txid_current() FROM {schema}.knocks"),
        ],
    )
    assert rows[1] == [(1, rows[0][0][0])]
    assert await stage.value("SELECT count(*) FROM {schema}.knocks") == 1
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


@pytest.mark.parametrize("bad", [0, 1])
async def test_when_one_fails_none_has_happened(stage: Stage, bad: int) -> None:
    """R23: whichever it is; the connection is still good."""
    connection = await stage.connect()
    requests = [ask(stage, "INSERT INTO {schema}.knocks (line) VALUES ($1)", "ca")]
    requests.insert(bad, ask(stage, "SELECT 1 / 0"))
    with pytest.raises(psycopg.errors.DivisionByZero):
        await fetch_at_once(connection, requests)
    assert await stage.value("SELECT count(*) FROM {schema}.knocks") == 0
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert await fetch_at_once(connection, [ask(stage, "SELECT 7")]) == [[(7,)]]


async def test_the_second_sees_what_committed_while_the_first_waited(stage: Stage) -> None:
    """R21: a look at lines counts by what is there when it begins, not when the commit before it began."""
    other, connection = await stage.connect(), await stage.connect()
    await stage.ask("INSERT INTO {schema}.lines (line, made_at) VALUES ('ca', now())")
    await other.execute("BEGIN")
    await stage.ask("SELECT 1 FROM {schema}.lines FOR UPDATE", on=other)
    await stage.ask("INSERT INTO {schema}.knocks (line) VALUES ('ca')", on=other)
    both = asyncio.ensure_future(
        fetch_at_once(
            connection,
            [
                ask(stage, "UPDATE {schema}.lines SET wake_at = now() RETURNING 1"),
                ask(stage, "SELECT count(*) FROM {schema}.knocks"),
            ],
        )
    )
    await stage.until_waiting(both, connection)
    await other.execute("COMMIT")
    assert await both == [[(1,)], [(1,)]]
