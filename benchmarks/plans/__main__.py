"""``python -m benchmarks.plans``: fills a throw-away database and writes down how it runs each hot statement."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import saved
from benchmarks.envs import ROOT
from benchmarks.plans.calls import CLIENT, calls
from benchmarks.plans.page import Explained, page
from benchmarks.plans.planner import Planner
from benchmarks.plans.stock import ME, Stock, lay
from benchmarks.server import Server, running
from gen_durable import Engine
from gen_durable._store.connection import fetch, open_connection
from gen_durable._store.operation import Row, catalog, render
from gen_durable.errors import GenDurableError

SCHEMA = "gen_durable"
DATABASE = "bench_plans"
ROW_BYTES = 1000
"""Disk that a row may take, with its indexes and its part of the WAL."""
TIMEOUT = 60.0


def stock_of(rows: int) -> Stock:
    """So many rows in all: half of them a backlog, a tenth ended, a tenth reserved by these, the rest mixed."""
    mixed = rows * 3 // 110_000 * 10_000
    return Stock(mixed=mixed, ended=rows // 10, backlog=rows - mixed - mixed // 10 - rows // 5)


async def explain_all(url: str, rows: int) -> list[Explained]:
    """Fill the database at ``url`` and run each statement; the second execution counts."""
    stock, sql = stock_of(rows), catalog(SCHEMA)
    await Engine(url, schema=SCHEMA).migrate()
    main = await open_connection(url, "plans")

    async def run(statement: str, /, **values: Any) -> list[Row]:
        return await fetch(main, sql[statement].bind(**values))

    async def ask(text: str) -> list[Row]:
        cursor = await main.execute(render(text, SCHEMA).encode(), prepare=False)
        return await cursor.fetchall() if cursor.description else []

    async with main:
        await lay(run, ask)
        for insertion in stock.insertions():
            await ask(insertion)
        await ask("VACUUM (ANALYZE)")
        mine = sorted((id_, rev) for id_, rev in await run("claiming/mine", worker=ME))
        worker = await Planner.open(sql, await open_connection(url, "plans"), steady=True)
        client = await Planner.open(sql, await open_connection(url, "plans"), steady=False)
        async with worker.connection, client.connection:
            found = []
            for call in calls(mine, stock):
                by_client = call.statement in CLIENT or call.statement.startswith("reading/")
                name, planner = ("client", client) if by_client else ("worker", worker)
                await planner.explain(call, TIMEOUT)
                answer = await planner.explain(call, TIMEOUT)
                found.append(Explained(call, name, answer, await planner.text(call, TIMEOUT)))
            return found


def write(server: Server, rows: int) -> Path:
    """Fill a database of the server, explain, and write the page; its file."""
    url = server.recreate(DATABASE)
    start = time.monotonic()
    try:
        explained = asyncio.run(explain_all(url, rows))
        size = server.size(DATABASE)
    finally:
        server.drop(DATABASE)
    stock = stock_of(rows)
    took = f"{time.monotonic() - start:.0f} s"
    about = (
        f"{datetime.now(UTC).date()}, {server.describe()}. Made by `python -m benchmarks.plans --rows {rows}` in "
        f"{took}. The rows, {_gigabytes(size)} GB: a backlog of {stock.backlog:,} ready ones; {stock.mixed:,} mixed "
        f"ones, scheduled, parked, waiting for children, executing and ready; {stock.blocked:,} that wait for one of "
        f"200 keys or hold it; {stock.ended:,} ended ones, whose keys are still reserved by as many rows. All are "
        "vacuumed and analyzed."
    )
    path = saved.HOME / f"plans-{rows}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(page(f"Plans among {rows:,} rows", about, explained))
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Write a page for each number of rows; 2 without a server or without room on the disk."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plans", description="Explain all hot statements.")
    parser.add_argument("--rows", type=_numbers, default=[1_000_000], metavar="N,M", help="default: 1000000")
    parser.add_argument("--url", help="use this server (a superuser's URL) instead of a throw-away one")
    arguments = parser.parse_args(argv)
    if not arguments.url and (missing := _missing(max(arguments.rows))):
        print(missing, file=sys.stderr)
        return 2
    try:
        with running(arguments.url) as server:
            for rows in arguments.rows:
                print(write(server, rows).relative_to(ROOT))
    except (psycopg.OperationalError, GenDurableError) as error:
        print(f"no plans: {error}", file=sys.stderr)
        return 2
    return 0


def _missing(rows: int) -> str:
    """What to say when the disk of the throw-away server can't take so many rows, or nothing."""
    folder = tempfile.gettempdir()
    needed, free = rows * ROW_BYTES, shutil.disk_usage(folder).free
    if needed <= free:
        return ""
    return (
        f"--rows {rows} needs about {_gigabytes(needed)} GB in {folder}, where {_gigabytes(free)} GB are free: "
        "take fewer rows, set TMPDIR to a folder with more room, or give a server with --url"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f}"


def _numbers(text: str) -> list[int]:
    numbers = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if min(numbers) < 100_000:
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers of 100000 or more, with commas between them")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
