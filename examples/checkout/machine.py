"""The checkout of one order: reserve stock, charge the card, ship, send the receipt.

A worker may die at any point of a step, and then the step runs again. So each effect is idempotent: the shop's tables
have the order as primary key, and the payment provider gets the order's key as its Idempotency-Key.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import aiohttp

from examples.checkout.payments import Declined
from examples.checkout.services import payments, shop
from gen_durable import Backoff, Context, Done, Machine, Next, Stop, step

# The provider's troubles pass, so they are worth a retry. Any other error is a bug of ours, and stops the order.
PATIENT = Backoff(
    max_attempts=10,
    initial=0.2,
    maximum=5.0,
    retry_on=(aiohttp.ClientError, TimeoutError),
)


class Checkout(Machine, queue="checkout", retry=Backoff(max_attempts=5, initial=0.1), timeout=10):
    """One order; its fields are the durable state."""

    order: str
    email: str
    item: str
    quantity: int
    unit_price: Decimal
    card: str
    charge_id: str | None = None
    tracking: int | None = None
    refused: str | None = None

    @property
    def cents(self) -> int:
        """What the customer pays."""
        return int(self.quantity * self.unit_price * 100)

    @step
    async def reserve(self, ctx: Context) -> Next | Stop:
        await shop.note_run(ctx)
        if not await shop.reserve(self.order, self.item, self.quantity):
            return Stop("out of stock")
        return Next(self.charge)

    @step(timeout=1, retry=PATIENT)
    async def charge(self, ctx: Context) -> Next:
        await shop.note_run(ctx)
        self.charge_id = await payments.charge(
            idempotency_key=f"order:{self.order}", order=self.order, cents=self.cents, card=self.card
        )
        return Next(self.ship, priority=-1)  # before orders that are not paid yet

    @step
    async def ship(self, ctx: Context) -> Next:
        await shop.note_run(ctx)
        self.tracking = await shop.ship(self.order)
        return Next(self.receipt)

    @step
    async def receipt(self, ctx: Context) -> Done:
        await shop.note_run(ctx)
        await shop.send_receipt(self.order, self.email, self.cents)
        return Done({"cents": self.cents, "charge": self.charge_id, "tracking": self.tracking})

    @step
    async def give_back(self, ctx: Context) -> Stop:
        """Undoes the reservation of an order whose card was refused."""
        await shop.note_run(ctx)
        await shop.release(self.order)
        return Stop(f"card declined: {self.refused}")

    async def on_error(self, error: Any, ctx: Context) -> Next:
        if isinstance(error, Declined):
            self.refused = str(error)
            return Next(self.give_back)
        raise error  # the step's retry policy decides
