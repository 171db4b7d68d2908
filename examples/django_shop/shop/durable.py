"""An order from its placing to its shipment; gen_durable finds the machines of a module of this name."""

from __future__ import annotations

from gen_durable import Await, Context, Done, Machine, Next, Stop, step
from gen_durable.contrib.django import fresh_connections

DAY = 86_400.0


class Checkout(Machine, name="DjangoCheckout", queue="shop"):
    """Waits for the payment, ships, and tells the customer."""

    order: int
    paid: int = 0

    @step
    async def begin(self, ctx: Context) -> Await:
        return Await("paid", then=self.check, timeout=DAY)

    @step
    async def check(self, ctx: Context) -> Next | Stop:
        if ctx.timed_out:
            return Stop("payment never came")
        self.paid = ctx.awaited[0].payload["amount"]
        return Next(self.ship)

    @step(transactional=True)
    def ship(self, ctx: Context) -> Next:
        """The shipment's row, the order's status and this step's outcome are one transaction: there is one shipment."""
        ctx.conn.execute("INSERT INTO shop_shipment (order_id, paid) VALUES (%s, %s)", (self.order, self.paid))
        ctx.conn.execute("UPDATE shop_order SET status = 'shipped' WHERE id = %s", (self.order,))
        return Next(self.tell)

    @step
    def tell(self, ctx: Context) -> Done:
        """A plain step with Django's ORM. The mail goes out by a task, as any other mail of the project."""
        from examples.django_shop.shop.models import Order
        from examples.django_shop.shop.tasks import send_mail

        with fresh_connections():
            order = Order.objects.get(pk=self.order)
            send_mail.enqueue(order.email, f"Your {order.item_id} is on its way.")
        return Done({"paid": self.paid})
