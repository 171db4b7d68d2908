"""``gen-durable demo``: a worker is killed half-way, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from gen_durable.cli._options import debug_option, run
from gen_durable.cli._output import progress, table

if TYPE_CHECKING:
    from gen_durable import Engine

__all__ = ["demo"]

PATIENCE = 90.0


@click.command
@click.option("--orders", type=click.IntRange(20, 100_000), default=400, show_default=True, help="How many orders.")
@debug_option
@click.pass_context
def demo(ctx: click.Context, orders: int) -> None:
    """Run orders through a machine of three steps in two worker processes, kill one with SIGKILL half-way, and check.

    It uses a PostgreSQL server of its own that is gone at the end. It ends with 1 when an order was lost or a step's
    outcome was applied twice.
    """
    from gen_durable import embedded

    click.echo("Starting a throw-away PostgreSQL …")
    with tempfile.TemporaryDirectory(prefix="gen_durable-") as folder, embedded.temporary() as url:
        ledger = Path(folder) / "ledger"
        ledger.touch()
        if not run(_demo(url, ledger, orders)):
            ctx.exit(1)


async def _demo(url: str, ledger: Path, orders: int) -> bool:
    from gen_durable import Engine
    from gen_durable.cli.demo_app import Order

    engine = Engine(url, machines=[Order], queues={"default": 1}, name="demo client")
    await engine.migrate()
    async with engine.client():
        async with _workers(url, ledger):
            await _two_workers(engine)
            click.echo(f"{orders} orders, three steps each, two worker processes")
            started = time.monotonic()
            await engine.insert_many(Order(order=number) for number in range(orders))
            killed, successor = await _watch(engine, orders)
            took = time.monotonic() - started
        return await _report(engine, ledger, orders, killed, successor, took)


@contextlib.asynccontextmanager
async def _workers(url: str, ledger: Path) -> AsyncIterator[None]:
    """Two worker processes under a supervisor; their log goes to a file beside the ledger."""
    from gen_durable.cli.demo_app import LEDGER

    ours, theirs = socket.socketpair()  # they end with this process, however it ends
    with ledger.with_name("log").open("wb") as log, ours:
        with theirs:
            supervisor = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gen_durable", "worker", "gen_durable.cli.demo_app:engine", "--processes", "2"),
                *("--leash", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                env={**os.environ, "GEN_DURABLE_DATABASE_URL": url, LEDGER: str(ledger)},
                stderr=log,
                start_new_session=True,
            )
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                supervisor.terminate()
            await supervisor.wait()


async def _two_workers(engine: Engine) -> None:
    """Waits until both are registered."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if len(await engine.workers()) >= 2:
                return
            await asyncio.sleep(0.1)


async def _watch(engine: Engine, orders: int) -> tuple[int | None, int | None]:
    """Kills a worker half-way, waits until all orders ended; the pids of the killed one and of its successor."""
    killed = successor = None
    pids: set[int] = set()
    until = time.monotonic() + PATIENCE + orders / 50
    with progress("orders", orders) as advance:
        while time.monotonic() < until:
            ended = sum(one.count for one in await engine.counts() if one.status in ("done", "failed"))
            advance(ended)
            now = {worker.pid for worker in await engine.workers()}
            if killed is None and ended >= orders / 2:
                pids, killed = now, min(now)
                os.kill(killed, signal.SIGKILL)
                click.echo(f"kill -9 {killed}: half of the orders are done, others were under way in it")
            elif killed is not None and successor is None and now - pids:
                successor = (now - pids).pop()
                click.echo(f"worker {successor} takes its place")
            if ended == orders and successor is not None:
                break
            await asyncio.sleep(0.1)
    return killed, successor


async def _report(
    engine: Engine, ledger: Path, orders: int, killed: int | None, successor: int | None, took: float
) -> bool:
    from gen_durable.cli.demo_app import STEPS

    right, after = 0, None
    while True:
        page = await engine.list(status="done", limit=1000, after=after)
        right += sum(one.state["passed"] == list(STEPS) and one.result == one.state["order"] for one in page.items)
        after = page.next
        if after is None:
            break
    runs = Counter((await asyncio.to_thread(ledger.read_text)).splitlines())
    again = sum(count - 1 for count in runs.values())
    checks = [
        ("a worker was killed half-way", str(killed), killed is not None),
        ("the supervisor replaced it", str(successor), successor is not None),
        ("orders that finished, each step's outcome applied once", f"{right} of {orders}", right == orders),
        ("steps that ran", f"{len(runs)} of {3 * orders}", len(runs) == 3 * orders),
        ("steps that ran again because of the kill", str(again), True),
    ]
    click.echo()
    rows = [[what, value, "yes" if fine else "NO"] for what, value, fine in checks]
    table(("what", "found", "as it should be"), rows, empty="")
    fine = all(check[2] for check in checks)
    click.echo(f"{'Nothing was lost' if fine else 'SOMETHING IS WRONG'}; {took:.1f} s")
    return fine
