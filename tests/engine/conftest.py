"""Plain SQL on the test's schema, for what the engine does not do itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest
from transactional_support import Notes


@pytest.fixture
async def sql(database_url: str, schema: str) -> AsyncIterator[Callable[..., Any]]:
    """Runs one statement and answers with its rows; ``{s}`` stands for the schema."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:

        async def run(text: str, *values: Any) -> list[tuple[Any, ...]]:
            cursor = await connection.execute(text.replace("{s}", schema).encode(), values or None)
            return [] if cursor.description is None else await cursor.fetchall()

        yield run


@pytest.fixture
async def notes(sql: Callable[..., Any], migrated: str) -> Notes:
    """A table of the user's."""
    made = Notes(sql, migrated)
    await made.create()
    return made
