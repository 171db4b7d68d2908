"""For tests of a Django project: run what is due in the test itself, and move the clock.

::

    class Shipping(TransactionTestCase):
        def test_it(self):
            with transaction.atomic():
                client().insert(Checkout(order=1), key="order:1", conn=connection)
            drain()
            assert client().get("order:1").status == "awaiting_signal"
            advance(86_400)
            drain()

The database that Django's test runner makes has a schema for tests, whose clock can be moved; it is emptied when Django
flushes its own tables, after each ``TransactionTestCase``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import TypeVar

from gen_durable import testing
from gen_durable.contrib.django import close, conf
from gen_durable.engine import Engine
from gen_durable.errors import SchemaMissing, SchemaVersionError
from gen_durable.testing import Tally
from gen_durable.testing._schemas import empty

__all__ = ["advance", "drain"]

T = TypeVar("T")


def drain(*, max_steps: int = 1000, collapse: bool = True, queues: Iterable[str] | None = None) -> Tally:
    """Runs everything that can run, until nothing can: :func:`gen_durable.testing.drain`, for tests that can't await.

    Args:
        max_steps, collapse, queues: as there.

    Raises:
        as there, but that the engine is open always.
    """

    async def run(engine: Engine) -> Tally:
        async with engine.client():
            return await testing.drain(engine, max_steps=max_steps, collapse=collapse, queues=queues)

    return _with_engine(run)


def advance(by: float | timedelta) -> datetime:
    """Moves the clock forward: :func:`gen_durable.testing.advance`, for tests that can't await.

    Args:
        by: seconds or a timedelta.

    Raises:
        as there, but that the engine is open always.
    """

    async def run(engine: Engine) -> datetime:
        async with engine.client():
            return await testing.advance(engine, by)

    return _with_engine(run)


def make_schema() -> None:
    """In the database of a test run, which is new: the tables, with a clock that can be moved.

    Raises:
        ConfigurationError: it is kept from a run that made other ones (``--keepdb``), or a setting is wrong.
        DatabaseUnreachable: no connection.
    """
    _with_engine(testing.migrate)


def empty_schema() -> None:
    """Empties a schema for tests; leaves any other one alone.

    Raises:
        psycopg.Error: a worker still runs in it.
    """

    async def is_for_tests(engine: Engine) -> str | None:
        async with engine.client():
            return engine._session.url if engine._test_clock else None

    try:
        url = _with_engine(is_for_tests)
    except (SchemaMissing, SchemaVersionError):
        return
    if url is not None:
        close()  # it remembers names that are gone then
        empty(url, conf.read().schema)


def _with_engine(run: Callable[[Engine], Awaitable[T]]) -> T:
    async def main() -> T:
        return await run(conf.build_engine(conf.read()))

    return asyncio.run(main())
