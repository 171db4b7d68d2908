"""An order from its placing to its shipment."""

from __future__ import annotations

from gen_durable import Await, Context, Done, Machine, Next, Stop, step

__all__ = ["Checkout"]

DAY = 86_400.0


class Checkout(Machine, name="FastapiCheckout", queue="shop"):
    """Waits for the payment, then ships."""

    order: int
    patience: float = DAY  # seconds that the customer has
    paid: int = 0

    @step
    async def begin(self, ctx: Context) -> Await:
        return Await("paid", then=self.paid_or_not, timeout=self.patience)

    @step
    async def paid_or_not(self, ctx: Context) -> Next | Stop:
        if ctx.timed_out:
            return Next(self.give_up)
        self.paid = ctx.awaited[0].payload["amount"]
        return Next(self.ship)

    @step(transactional=True)
    async def ship(self, ctx: Context) -> Done:
        """The shipment's row, the order's status and this step's outcome are one transaction: there is one shipment."""
        await ctx.conn.execute("INSERT INTO shipments (order_id, paid) VALUES (%s, %s)", (self.order, self.paid))
        await ctx.conn.execute("UPDATE orders SET status = 'shipped' WHERE id = %s", (self.order,))
        return Done({"paid": self.paid})

    @step(transactional=True)
    async def give_up(self, ctx: Context) -> Stop:
        """What was reserved goes back to the shelf."""
        await ctx.conn.execute(
            "UPDATE items SET stock = stock + o.quantity FROM orders o WHERE o.id = %s AND items.name = o.item",
            (self.order,),
        )
        await ctx.conn.execute("UPDATE orders SET status = 'expired' WHERE id = %s", (self.order,))
        return Stop("payment never came")
