"""The demo: 2,000 orders, two worker processes, one of them killed half-way, and a report that checks it all."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
from rich.console import Console

from examples.checkout.board import Board, Counts
from examples.checkout.database import SchemaTaken, database, empty_schemas
from examples.checkout.machine import Checkout
from examples.checkout.orders import BadOrders, Order, deliveries, read_orders
from examples.checkout.processes import ChildDied, Children
from examples.checkout.report import Ended, Facts, Killed, checks, many, show
from examples.checkout.shop import Shop
from gen_durable import BulkItem, Engine, Snapshot
from gen_durable.errors import GenDurableError
from gen_durable.snapshot import WorkerInfo

LOOK_EVERY = 0.2  # seconds


@dataclass(frozen=True)
class Kill:
    """Who was killed, how many orders had ended, and when, by the database's clock."""

    victim: WorkerInfo
    ended: int
    at: datetime


class Demo:
    """One run of it, once the database is ready."""

    def __init__(self, engine: Engine, shop: Shop, children: Children, board: Board, orders: Sequence[Order]) -> None:
        self._engine, self._shop, self._children, self._board = engine, shop, children, board
        self._orders = orders
        self._workers: dict[int, Process] = {}
        self._env: dict[str, str] = {}

    async def run(self, url: str, *, forgetful: bool, patience: float) -> Facts:
        """Runs all orders to their end, kills a worker on the way, and gathers what there is to know."""
        self._env = {"GEN_DURABLE_DATABASE_URL": url, "CHECKOUT_SCHEMA": self._engine.settings.schema}
        provider = await self._start_provider(forgetful)
        items = [BulkItem(_checkout(order), key=f"order:{order.order}") for order in self._orders]
        await self._engine.insert_many(items)
        self._board.say(f"{many(len(items), 'order')} inserted; starting two workers")
        await asyncio.gather(self._start_worker(), self._start_worker())
        async with aiohttp.ClientSession(provider) as http:
            killed = await self._watch(http, time.monotonic() + patience)
            await self._children.end(self._workers)  # what is looked at next must stand still
            report = await _get(http, "/report")
        return await self._facts(report, killed)

    async def _start_provider(self, forgetful: bool) -> str:
        options = ("--forgetful",) if forgetful else ()
        provider = await self._children.start("examples.checkout.provider", *options, env=self._env)
        assert provider.stdout is not None
        url = (await provider.stdout.readline()).decode().strip()
        self._children.listen(provider)
        if not url.startswith("http://"):
            raise ChildDied(f"the payment provider did not start; it printed {url!r}")
        self._env["CHECKOUT_PROVIDER_URL"] = url
        self._board.say(f"the payment provider is process {provider.pid}, at {url}")
        return url

    async def _start_worker(self) -> None:
        worker = await self._children.start("examples.checkout.worker", env=self._env)
        self._children.listen(worker)
        self._workers[worker.pid] = worker

    async def _watch(self, http: aiohttp.ClientSession, deadline: float) -> Kill | None:
        """Until all orders have ended: shows how far they are; half-way, kills a worker that holds claims."""
        killed = None
        while time.monotonic() < deadline:
            self._children.check()
            counts = await self._counts(http)
            self._board.show(counts)
            if counts.ended == len(self._orders):
                self._board.say("all ended; checking …")
                return killed
            if killed is None and counts.ended >= len(self._orders) // 2 and (victim := await self._victim()):
                await self._children.kill(victim.pid)
                killed = Kill(victim, counts.ended, await self._shop.now())
                self._board.say(
                    f"killed worker {victim.pid} (SIGKILL) after {many(counts.ended, 'order')}; starting a new one"
                )
                await self._start_worker()
            await asyncio.sleep(LOOK_EVERY)
        self._board.say("the time is up; stopping the workers, checking …")
        return killed

    async def _counts(self, http: aiohttp.ClientSession) -> Counts:
        statuses = {count.status: count.count for count in await self._engine.counts()}
        reserved, shipped, receipts = await self._shop.progress()
        charged = (await _get(http, "/count"))["charges"]
        return Counts(reserved=reserved, charged=charged, shipped=shipped, receipts=receipts, **statuses)

    async def _victim(self) -> WorkerInfo | None:
        """The worker that holds most claims with a charge under way, if there is one."""
        held = Counter[int | None]()
        async for snapshot in _all(self._engine, status="executing"):
            held[snapshot.worker] += snapshot.step == "charge"
        workers = [worker for worker in await self._engine.workers() if held[worker.id] and worker.pid in self._workers]
        return max(workers, key=lambda worker: held[worker.id], default=None)

    async def _facts(self, report: dict[str, Any], kill: Kill | None) -> Facts:
        limit = asyncio.Semaphore(self._engine.settings.pool_size)
        crashes: list[datetime] = []

        async def look_up(found: Snapshot) -> Ended:
            async with limit:
                history = await self._engine.history(found.id)
            crashes.extend(transition.at for transition in history if transition.outcome == "crashed")
            return Ended(
                key=found.key,
                status=found.status,
                cents=found.result["cents"] if found.status == "done" else 0,
                reason=found.error["message"] if found.error else f"still {found.status} at {found.step!r}",
                history=tuple((transition.step, transition.attempt, transition.outcome) for transition in history),
            )

        ended = await asyncio.gather(*[look_up(found) async for found in _all(self._engine)])
        killed = None
        if kill is not None:
            after = (max(crashes) - kill.at).total_seconds() if crashes else None
            killed = Killed(kill.victim.id, kill.victim.pid, kill.ended, after)
        return Facts(self._orders, ended, await self._shop.books(), report, killed)


async def _get(http: aiohttp.ClientSession, path: str) -> Any:
    async with http.get(path) as answer:
        return await answer.json()


async def _all(engine: Engine, status: str | None = None) -> AsyncIterator[Snapshot]:
    after = None
    while True:
        page = await engine.list(machine="Checkout", status=status, limit=1000, after=after)
        for snapshot in page.items:
            yield snapshot
        if (after := page.next) is None:
            return


def _checkout(order: Order) -> Checkout:
    return Checkout(
        order=order.order,
        email=order.email,
        item=order.item,
        quantity=order.quantity,
        unit_price=order.unit_price,
        card=order.card,
    )


async def demo(options: argparse.Namespace, console: Console) -> bool:
    """The whole demo; whether every check of its report holds."""
    started = time.monotonic()
    orders = read_orders(options.orders)
    engine = Engine(options.database_url, machines=[Checkout], queues={}, schema=options.schema, name="demo")
    async with database(engine, options.database_url) as url:
        shop = Shop(url, options.schema)
        async with empty_schemas(url, options.schema, shop.schema):
            await engine.migrate()
            try:
                await shop.open_shop(deliveries(orders))
                with Board(console, len(orders)) as board:
                    async with Children(board.say) as children, engine.client():
                        running = Demo(engine, shop, children, board, orders)
                        facts = await running.run(url, forgetful=options.forgetful, patience=options.timeout)
            finally:
                await shop.close()
    return show(console, list(checks(facts)), time.monotonic() - started)


async def _until_signalled(options: argparse.Namespace, console: Console) -> bool:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await demo(options, console)


def main() -> int:
    """Exit status 0: every check holds; 1: one does not, or a process died; 2: it can't start; 130: interrupted."""
    parser = argparse.ArgumentParser(prog="python -m examples.checkout", description=__doc__)
    parser.add_argument("--orders", type=Path, default=Path(__file__).with_name("orders.csv"), metavar="FILE")
    parser.add_argument("--database-url", help="default: GEN_DURABLE_DATABASE_URL, DATABASE_URL, the embedded server")
    parser.add_argument("--schema", default="checkout_demo", help="dropped and made anew (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for all orders (default: %(default)s)")
    parser.add_argument("--forgetful", action="store_true", help="a provider without idempotency: see the report fail")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        return 0 if asyncio.run(_until_signalled(options, console)) else 1
    except (BadOrders, SchemaTaken, GenDurableError, psycopg.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ChildDied, aiohttp.ClientError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; all processes of the demo were ended", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
