"""The Django shop as the project of this process: set up once, on the test run's database, in a schema of its own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from gen_durable.errors import InstanceCancelled, InstanceFailed

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


# Models are made when test modules are imported, so Django is set up before; the database comes with the first test.
SCHEMA = f"t_django_{uuid.uuid4().hex[:8]}"
NAMES = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
NOWHERE = "host=127.0.0.1 port=1 dbname=none"


def _set_up() -> None:
    import django

    given = {
        "DJANGO_SETTINGS_MODULE": "examples.django_shop.settings",
        "GEN_DURABLE_DATABASE_URL": NOWHERE,
        "SHOP_SCHEMA": SCHEMA,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        django.setup()


_set_up()


def within(url: str, schema: str) -> str:
    """The URL of a database whose tables without a schema are those of ``schema``."""
    return psycopg.conninfo.make_conninfo(url, options=f"-c search_path={schema}")


@pytest.fixture
def own_database(database_url: str, schema: str) -> str:
    """A database URL that leads into the test's own, empty schema."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
    return within(database_url, schema)


@pytest.fixture(scope="session")
def _project(database_url: str) -> Iterator[str]:
    from django.core.management import call_command
    from django.db import connections

    from gen_durable.contrib.django import close

    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {SCHEMA}".encode())
    given = conninfo_to_dict(within(database_url, SCHEMA))
    django_s = {key: given.pop(name, "") for key, name in NAMES.items()}
    connections["default"].settings_dict.update({**django_s, "OPTIONS": given})
    call_command("migrate", verbosity=0)
    yield SCHEMA
    close()
    connections.close_all()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SET client_min_messages = error")
        connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE".encode())


@pytest.fixture
def project(_project: str) -> Iterator[str]:
    """The project's schema; each test finds the shelves full and no order."""
    from django.db import connections
    from examples.django_shop.shop.models import Item, Mail, Order, Shipment

    for model in (Mail, Shipment, Order):
        model.objects.all().delete()
    Item.objects.filter(pk="kettle").update(stock=3)
    yield _project
    connections.close_all()


@pytest.fixture
def work(project: str) -> Callable[..., None]:
    """Runs the project's worker until the given instances have ended."""
    from gen_durable.contrib.django import close, engine

    async def until(ids: tuple[Any, ...]) -> None:
        async with engine() as running:
            for id_ in ids:
                with contextlib.suppress(InstanceFailed, InstanceCancelled):
                    await running.result(id_, timeout=20)

    def run(*ids: Any) -> None:
        try:
            asyncio.run(until(ids))
        finally:
            close()

    return run
