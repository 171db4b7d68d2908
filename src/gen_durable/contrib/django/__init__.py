"""gen_durable in a Django project: settings, checks, a client, commands, a task backend, a read-only admin.

::

    INSTALLED_APPS += ["gen_durable.contrib.django"]
    GEN_DURABLE = {"QUEUES": {"default": 20}}           # all keys are optional

Machines and jobs are those of the ``durable`` modules of the apps. They run in ``manage.py durable worker``;
``manage.py migrate`` brings the tables. Views insert::

    from gen_durable.contrib.django import client

    with transaction.atomic():
        order = Order.objects.create(...)
        client().insert(Checkout(order=order.pk), key=f"order:{order.pk}", conn=connection)

Without ``conn=`` a call is a transaction of its own, whatever block it is written in.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gen_durable import Engine, SyncClient
    from gen_durable.contrib.django.conf import Given

__all__ = ["client", "close", "engine", "fresh_connections", "migrate"]


@dataclass(frozen=True, slots=True)
class _Opened:
    """The engine and the client of one process, and the database that they are for."""

    pid: int
    database: str
    given: Given
    engine: Engine
    client: SyncClient


_lock = threading.RLock()  # a durable module may ask for the client while it is imported
_opened: _Opened | None = None
_inherited: list[_Opened] = []  # of a process that has forked: its connections are not ours to close


def client() -> SyncClient:
    """The client of this process, the same for all its threads; connected when it is used first.

    It is made anew after a fork, and when the database is another: that is so under Django's test runner.

    Raises:
        ConfigurationError: a setting is wrong; ``manage.py check`` says so too.
    """
    return _open().client


def engine() -> Engine:
    """The engine of ``settings.GEN_DURABLE``: not started; what the worker runs, and what a test may drain.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    return _open().engine


def migrate() -> list[str]:
    """Creates or updates gen_durable's tables; answers with the names of the migrations that ran.

    Raises:
        ConfigurationError: a setting is wrong.
        DatabaseUnreachable, SchemaVersionError: what stands in the way.
    """
    return _open().client.migrate()


def close() -> None:
    """Closes this process's client; the next call of :func:`client` opens another. Safe to call twice."""
    global _opened
    with _lock:
        before, _opened = _opened, None
    if before is not None and before.pid == os.getpid():
        before.client.close()


@contextlib.contextmanager
def fresh_connections() -> Iterator[None]:
    """For a plain step that uses Django's ORM: what a request has around it, a thread of the worker has not.

    Connections of this thread that are broken or too old are closed before and after, so that a step does not fail
    for ever because the database was restarted once. As ``with fresh_connections():`` within the step.
    """
    from django.db import close_old_connections

    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()


def _open() -> _Opened:
    from django.db import connections

    from gen_durable.contrib.django import conf

    global _opened
    with _lock:
        now = _opened
        if now is not None and now.pid != os.getpid():
            _inherited.append(now)
            now = None
        if now is not None:
            if now.database == str(connections[now.given.database].settings_dict["NAME"]):
                return now
            now.client.close()
        given = conf.read()
        made = conf.build_engine(given)
        name = str(connections[given.database].settings_dict["NAME"])
        _opened = _Opened(os.getpid(), name, given, made, made.sync_client())
        return _opened
