"""For tests of a Django project: run what is due, in the test itself.

::

    class Shipping(TransactionTestCase):
        def test_it(self):
            with transaction.atomic():
                client().insert(Checkout(order=1), key="order:1", conn=connection)
            drain()
            assert client().get("order:1").status == "awaiting_signal"
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from gen_durable.contrib.django import conf
from gen_durable.testing import Tally
from gen_durable.testing import drain as drain_engine

__all__ = ["drain"]


def drain(*, max_steps: int = 1000, queues: Iterable[str] | None = None) -> Tally:
    """Runs every step that is due, until none is; answers with what came of it. No worker may run.

    What is due later stays: the test database has the clock of production, which no test can move.

    Args:
        max_steps: after so many runs it gives up.
        queues: only these; None: all.

    Raises:
        TooManySteps: ``max_steps`` runs, and still something to do.
        InvalidArgument: an argument is wrong, or there is no such queue.
        DatabaseUnreachable: no connection.
    """

    async def run() -> Tally:
        engine = conf.build_engine(conf.read())
        async with engine.client():
            return await drain_engine(engine, max_steps=max_steps, collapse=False, queues=queues)

    return asyncio.run(run())
