"""Plain SQL on the schema of a test for ``gen_durable.testing``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest


@pytest.fixture
async def sql(durable_database: str, durable_schema: str) -> AsyncIterator[Callable[..., Any]]:
    """Runs one statement and answers with its rows; ``{s}`` stands for the schema."""
    async with await psycopg.AsyncConnection.connect(durable_database, autocommit=True) as connection:

        async def run(text: str, *values: Any) -> list[tuple[Any, ...]]:
            cursor = await connection.execute(text.replace("{s}", durable_schema).encode(), values or None)
            return [] if cursor.description is None else await cursor.fetchall()

        yield run
