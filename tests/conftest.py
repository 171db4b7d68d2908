"""The database of the test run: its own throw-away server, or the one of DATABASE_URL; a schema for each test."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg
import pytest

from gen_durable import Engine
from gen_durable._store.connection import open_connection
from gen_durable._store.operation import Row
from gen_durable.config import ENVIRONMENT
from schema_pool import SchemaPool

pytest_plugins = ["gen_durable.pytest_plugin"]


@pytest.fixture(scope="session")
def database_url(durable_database: str) -> str:
    """A database for the whole run; tests share it and keep to schemas of their own."""
    return durable_database


@pytest.fixture(autouse=True)
def _no_database_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test whose engine has no URL must not find the one that the run was given (a session's fixture has it)."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def schema_pool(database_url: str) -> Iterator[SchemaPool]:
    """Where schemas come from."""
    pool = SchemaPool(database_url)
    yield pool
    pool.close()


@pytest.fixture
def schema(request: pytest.FixtureRequest, schema_pool: SchemaPool) -> Iterator[str]:
    """A schema name of the test's own; what is in it goes with the test. With the clock of production."""
    if "migrated" in request.fixturenames:
        name = schema_pool.take(
            new=request.node.get_closest_marker("explain") is not None
        )  # plans see what tables were
    else:
        name = f"t_{uuid.uuid4().hex[:12]}"
    yield name
    if schema_pool.has(name):
        schema_pool.give_back(name)
    else:
        schema_pool.drop(name)


@pytest.fixture
def migrated(schema: str, schema_pool: SchemaPool) -> str:
    """The same, migrated."""
    assert schema_pool.has(schema), "ask for it by name, so that it is there from the start"
    return schema


@pytest.fixture
def build(database_url: str, migrated: str) -> Callable[..., Engine]:
    """Makes engines on the test's schema; each has a name of its own. Start them with ``async with``."""

    def make(*machines: Any, **settings: Any) -> Engine:
        settings.setdefault("name", f"{migrated}_{uuid.uuid4().hex[:6]}")
        return Engine(settings.pop("url", database_url), machines=machines, schema=migrated, **settings)

    return make


@pytest.fixture
async def connect(database_url: str) -> AsyncIterator[Callable[[], Any]]:
    """Opens plain connections, for tests that step statements by hand; closed with the test."""
    opened: list[psycopg.AsyncConnection[Row]] = []

    async def open_one() -> psycopg.AsyncConnection[Row]:
        opened.append(await open_connection(database_url, "test"))
        return opened[-1]

    yield open_one
    for connection in opened:
        await connection.close()
