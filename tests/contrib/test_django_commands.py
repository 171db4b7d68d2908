"""``manage.py durable``: in process, and as the worker that it is in production."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psycopg
import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connections
from django.test import override_settings
from examples.django_shop import settings
from examples.django_shop.shop.durable import Checkout
from server import ROOT, Server, started

from gen_durable import Engine
from gen_durable.contrib.django import client, close
from gen_durable.contrib.django.conf import build_engine, read

MANAGE = str(ROOT / "examples" / "django_shop" / "manage.py")


def output(*command: str) -> str:
    out = io.StringIO()
    call_command("durable", *command, stdout=out)
    return out.getvalue()


@pytest.mark.usefixtures("project")
def test_migrate_may_be_run_again() -> None:
    """Section 11: Django's ``migrate`` has brought the tables already; this one finds nothing to do."""
    assert "nothing to do" in output("migrate")


@pytest.mark.usefixtures("project")
def test_django_s_migrate_brings_the_tables_unless_it_is_told_not_to(database_url: str, schema: str) -> None:
    """``MIGRATE``: gen_durable's tables come with the project's, or by their own command."""
    given = {**settings.GEN_DURABLE, "SCHEMA": schema}

    def there() -> bool:
        with psycopg.connect(database_url) as connection:
            return connection.execute("SELECT to_regclass(%s)", (f"{schema}.instances",)).fetchone() != (None,)

    with override_settings(GEN_DURABLE={**given, "MIGRATE": False}):
        call_command("migrate", verbosity=0)
        assert not there()
        out = io.StringIO()
        call_command("check", databases=["default"], stderr=out)
        assert "Run manage.py durable migrate" in out.getvalue()
    with override_settings(GEN_DURABLE=given):
        call_command("migrate", verbosity=0)
        assert there()


def test_status_shows_workers_queues_and_counts(project: str, work: Callable[..., None]) -> None:
    """What there is to do, and who does it."""
    client().insert(Checkout(order=1), delay=3600)
    client().pause_queue("shop")
    try:
        text = output("status")
        assert text.startswith("0 workers\n")
        assert "the queue shop is paused" in text
        assert re.search(r"^shop  DjangoCheckout  runnable  \d+$", text, re.MULTILINE)
    finally:
        client().resume_queue("shop")


@pytest.mark.usefixtures("project")
def test_errors_are_commands_errors() -> None:
    """Section 14: one line, an exit code, no password."""
    before = connections["default"].settings_dict
    close()
    connections["default"].settings_dict = {**before, "HOST": "127.0.0.1", "PORT": "1", "PASSWORD": "secret"}
    try:
        with pytest.raises(CommandError, match=r"no connection to the database \(host 127.0.0.1, port 1") as raised:
            call_command("durable", "status")
        assert raised.value.returncode == 3
        assert "secret" not in str(raised.value)
    finally:
        connections["default"].settings_dict = before
    with pytest.raises(CommandError, match="give each queue as name=n"):
        call_command("durable", "worker", "--queues", "shop")
    with pytest.raises(CommandError, match="0 is not in the range"):
        call_command("durable", "worker", "--processes", "0")


# As processes -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def manage(*command: str, url: str, schema: str, cwd: Path = ROOT) -> AsyncIterator[Server]:
    env = {"GEN_DURABLE_DATABASE_URL": url, "SHOP_SCHEMA": schema}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
        async with started(MANAGE, *command, env=env, cwd=cwd) as process:
            yield process


@pytest.mark.crash
async def test_workers_run_the_project_s_machines_and_drain(
    database_url: str, project: str, own_database: str, schema: str, tmp_path: Path
) -> None:
    """R26: two processes under a supervisor, started from any folder; SIGTERM drains them."""
    async with manage("migrate", url=own_database, schema=schema) as migrating:
        assert await migrating.ended() == 0, migrating.output
    given = {**settings.GEN_DURABLE, "SCHEMA": schema, "NAME": schema, "QUEUES": {}}
    with override_settings(GEN_DURABLE=given):
        engine = build_engine(read())
    command = ("durable", "worker", "--processes", "2")
    async with (
        manage(*command, url=own_database, schema=schema, cwd=tmp_path) as workers,
        Engine(database_url, machines=[spec.cls for spec in engine.settings.machines], schema=schema, queues={}) as own,
    ):
        order = await own.insert(Checkout(order=1), key="order:1", queue="shop")
        await workers.until("2 worker processes")
        async with asyncio.timeout(30):
            while (await own.get(order.id)).status != "awaiting_signal":
                await asyncio.sleep(0.05)
        async with asyncio.timeout(30):
            while len(await own.workers()) != 2:
                await asyncio.sleep(0.05)
        assert await workers.end() == 0, workers.output
        assert await own.workers() == []
    assert "all worker processes have ended" in workers.output


@pytest.mark.crash
async def test_django_s_test_runner(database_url: str) -> None:
    """The shop's own tests pass: the test database has the tables, runs steps, and can be dropped at the end."""
    with psycopg.connect(database_url) as connection:
        found = connection.execute("SELECT rolcreatedb FROM pg_roles WHERE rolname = current_user").fetchone()
    if found != (True,):
        pytest.skip("Django's test runner makes a database, which this role may not")
    async with manage("test", "--noinput", "examples.django_shop", url=database_url, schema="durable") as tests:
        assert await tests.ended() == 0, tests.output
    assert "Ran 4 tests" in tests.output


@pytest.mark.crash
async def test_a_worker_without_a_database_says_so(schema: str) -> None:
    """Section 14: exit code 3, a line that names the place."""
    url = "postgresql://user:secret@127.0.0.1:1/d"
    async with manage("durable", "worker", url=url, schema=schema) as worker:
        assert await worker.ended() == 3, worker.output
    assert "port 1, database d" in worker.output
    assert "secret" not in worker.output


def test_the_environment_is_as_it_was() -> None:
    """The worker's command changes PYTHONPATH for its children; a command that only fails must not show here."""
    assert "DJANGO_SETTINGS_MODULE" not in os.environ
