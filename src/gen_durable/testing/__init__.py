"""Tests of machines and jobs: run what is due in the test's own task, move the clock, assert.

::

    async with engine.client():
        await engine.insert(Checkout(order=42), key="order:42")
        tally = await testing.drain(engine)
        await testing.assert_done(engine, "order:42")

All of it works on a real Postgres, through the statements and the code of production. ``gen_durable.pytest_plugin`` has
fixtures for the database, the schema and the engine.
"""

from gen_durable.testing._assertions import assert_awaiting, assert_done, assert_failed, assert_status
from gen_durable.testing._clock import advance, clock, migrate
from gen_durable.testing._context import context
from gen_durable.testing._drain import drain
from gen_durable.testing._tally import Tally

__all__ = [
    "Tally",
    "advance",
    "assert_awaiting",
    "assert_done",
    "assert_failed",
    "assert_status",
    "clock",
    "context",
    "drain",
    "migrate",
]
