"""A migrated schema with statements to step by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from functions_stage import Caller, make_engine
from psycopg import AsyncConnection
from sql_stage import Connection, Stage

from gen_durable._store.connection import set_up


@pytest.fixture
async def stage(migrated: str, connect: Callable[[], Any]) -> Stage:
    """Its connections are set up like a worker's: an unqualified name finds nothing, plans don't move."""

    async def steady() -> Connection:
        connection: Connection = await connect()
        assert await set_up(connection, steady=True)
        return connection

    return Stage(migrated, steady, await steady())


@pytest.fixture
async def ear(stage: Stage) -> Any:
    """A connection that listens to the schema's wake-ups; see ``Stage.heard``."""
    connection = await stage.connect()
    await stage.run("queues/listen", on=connection)
    return connection


@pytest.fixture
async def caller(database_url: str, migrated: str) -> AsyncIterator[Caller]:
    """Calls the functions of a schema in which an engine has registered the machines of ``functions_stage``."""
    async with make_engine(database_url, migrated).client():
        pass
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        yield Caller(migrated, connection)
