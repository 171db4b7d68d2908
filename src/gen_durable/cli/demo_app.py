"""What the worker processes of ``gen-durable demo`` run."""

from __future__ import annotations

import asyncio
import os
from dataclasses import field

from gen_durable import Context, Done, Engine, Machine, Next, step

__all__ = ["LEDGER", "STEPS", "Order", "engine"]

LEDGER = "GEN_DURABLE_DEMO_LEDGER"
STEPS = ("reserve", "charge", "ship")
WORK_SECONDS = 0.05


class Order(Machine):
    """An order on its way; it notes the steps whose outcome was committed."""

    order: int
    passed: list[str] = field(default_factory=list)

    @step
    async def reserve(self, ctx: Context) -> Next:
        """Reserves the stock."""
        await self._work("reserve")
        return Next(self.charge)

    @step
    async def charge(self, ctx: Context) -> Next:
        """Charges the customer."""
        await self._work("charge")
        return Next(self.ship)

    @step
    async def ship(self, ctx: Context) -> Done:
        """Ships the goods."""
        await self._work("ship")
        return Done(self.order)

    async def _work(self, name: str) -> None:
        """An effect outside the database, a line in a file: it shows each run of a step, also one that was killed."""
        line = f"{self.order} {name}\n".encode()
        ledger = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND)
        try:
            os.write(ledger, line)
        finally:
            os.close(ledger)
        await asyncio.sleep(WORK_SECONDS)
        self.passed.append(name)


engine = Engine(machines=[Order], queues={"default": 5}, name="demo")
