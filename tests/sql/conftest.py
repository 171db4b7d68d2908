"""A migrated schema with statements to step by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
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
