"""Fixtures for tests with gen_durable; pytest finds them by itself where the package is installed.

They are plain functions: any plugin for async tests goes with them. Nothing is started until a test asks for one.
``-p no:gen_durable.pytest_plugin`` leaves them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gen_durable.config import database_url_from_environment
from gen_durable.embedded import temporary
from gen_durable.engine import Engine
from gen_durable.testing._schemas import Schemas

__all__ = ["durable_database", "durable_engine", "durable_schema"]


@pytest.fixture(scope="session")
def durable_database() -> Iterator[str]:
    """The URL of the database for tests: ``GEN_DURABLE_DATABASE_URL``, then ``DATABASE_URL``, then a throw-away server.

    The server is one of this process alone (of each worker of pytest-xdist), and is gone at the end.
    """
    given = database_url_from_environment()
    if given is not None:
        yield given
        return
    with temporary() as url:
        yield url


@pytest.fixture(scope="session")
def _durable_schemas(durable_database: str) -> Iterator[Schemas]:
    schemas = Schemas(durable_database)
    yield schemas
    schemas.close()


@pytest.fixture
def durable_schema(_durable_schemas: Schemas) -> Iterator[str]:
    """The name of a migrated schema with nothing in it, whose clock ``testing.advance`` moves."""
    name = _durable_schemas.take()
    yield name
    _durable_schemas.give_back(name)


@pytest.fixture
def durable_engine(durable_database: str, durable_schema: str) -> Callable[..., Engine]:
    """Makes engines on the test's schema: ``durable_engine(machines=[Checkout])``, with any setting of an engine.

    Each has a name of its own. The test opens it: ``async with engine.client():``, or ``async with engine:``.
    """
    made = 0

    def make(**settings: Any) -> Engine:
        nonlocal made
        made += 1
        return Engine(
            settings.pop("url", durable_database),
            **{"schema": durable_schema, "name": f"{durable_schema}_{made}", **settings},
        )

    return make
