"""Machines and jobs as a user declares them: what type checkers are asked about."""

from __future__ import annotations

from gen_durable import Context, Done, Engine, Job, Machine, Next, job, step


class Checkout(Machine, queue="checkout"):
    order: int
    paid: int = 0

    @step
    async def start(self, ctx: Context) -> Next:
        return Next(self.ship)

    @step(timeout=5)
    def ship(self, ctx: Context) -> Done:
        return Done({"order": self.order})


class Resize(Job, max_attempts=5):
    path: str
    width: int = 800

    async def run(self, ctx: Context) -> dict[str, int]:
        return {self.path: self.width}


@job
async def plain(n: int) -> int:
    return n


@job(queue="email", max_attempts=10)
async def send_welcome(user_id: int, template: str = "hello") -> dict[str, int]:
    return {template: user_id}


@job(retry=None)
def with_context(ctx: Context, to: str) -> str:
    return f"{ctx.id} {to}"


engine = Engine(machines=[Checkout, Resize, plain, send_welcome, with_context], queues={"default": 5})
