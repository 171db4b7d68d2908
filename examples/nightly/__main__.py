"""The nights of a week, and some seconds of a line that is due each second, with two workers that race for them.

``python -m examples.nightly`` ends with exit status 0 when each occurrence was started once and each report is right,
else with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from examples.checkout.database import database
from examples.nightly.machine import PARIS, NightlyReport, nightly, sold_on
from gen_durable import Context, Engine, Schedule, job
from gen_durable.errors import GenDurableError

FIRST, LAST = date(2025, 3, 27), date(2025, 4, 2)  # the days of sales.csv; on 30 March 2:30 is not there in Paris
TICKS = 3


@job(queue="reports")
async def tick(ctx: Context, second: datetime | None = None) -> str:
    """What the line of each second starts."""
    return f"{second:%H:%M:%S}, by worker {ctx.worker}"


@contextlib.asynccontextmanager
async def two_workers(url: str, schema: str, folder: Path) -> AsyncIterator[tuple[Engine, Engine]]:
    """Two engines with the same schedules, as two processes would have."""
    schedules = [nightly(folder), Schedule("tick", "* * * * * *", tick.bind(), time_field="second", paused=True)]
    first, second = (
        Engine(
            url,
            machines=[NightlyReport, tick],
            queues={"reports": 4},
            schedules=schedules,
            schema=schema,
            name=f"nightly {number}",
        )
        for number in (1, 2)
    )
    async with first, second:
        yield first, second


async def backfill(engines: tuple[Engine, Engine], folder: Path) -> bool:
    """Both ask for the nights of a week at the same time; whether each night was started once, and is right."""
    engine = engines[0]
    before = {found.id for found in (await engine.list(machine="NightlyReport", limit=1000)).items}
    midnight = datetime.combine(FIRST + timedelta(days=1), datetime.min.time(), PARIS)
    span = midnight, midnight + timedelta(days=(LAST - FIRST).days + 1)
    started = await asyncio.gather(*(one.backfill_schedule("nightly", *span) for one in engines))
    page = await engine.list(machine="NightlyReport", limit=1000)
    ids = sorted({found.id for found in page.items} - before)
    results = [await engine.result(instance, timeout=60) for instance in ids]
    print(f"two workers ask for {(LAST - FIRST).days + 1} nights: {started[0]} + {started[1]} were started")
    for result in sorted(results, key=lambda found: found["day"]):
        print(f"  report of {result['day']}: {result['total']} EUR")
    days = [FIRST + timedelta(days=number) for number in range((LAST - FIRST).days + 1)]
    expected = {str(day): sum(sold_on(day).values(), Decimal(0)) for day in days}
    written = {path.stem for path in folder.glob("*.txt")}  # noqa: ASYNC240
    return (
        len(results) == len(days) == sum(started)
        and {result["day"]: Decimal(result["total"]) for result in results} == expected
        and written == set(expected)
    )


async def live(engine: Engine) -> bool:
    """Lets the line of each second run for a while; whether each second was started once."""
    print("a line that is due each second, with two workers:")
    before = {found.id for found in (await engine.list(machine="tick", limit=1000)).items}
    fired = asyncio.Semaphore(0)
    await engine.resume_schedule("tick")
    engine.on("schedule", lambda event: fired.release())
    found = []
    while len(found) < TICKS:
        with contextlib.suppress(TimeoutError):  # the other worker may have started them
            async with asyncio.timeout(0.5):
                await fired.acquire()
        found = [one for one in (await engine.list(machine="tick", limit=1000)).items if one.id not in before]
    await engine.pause_schedule("tick")
    page = await engine.list(machine="tick", limit=1000)
    found = [one for one in page.items if one.id not in before]
    for one in reversed(found):
        print(f"  {await engine.result(one.id, timeout=60)}")
    return len({one.state["second"] for one in found}) == len(found) >= TICKS


async def example(url: str | None, schema: str) -> bool:
    """Runs it all; whether all is right."""
    owner = Engine(url, schema=schema, name="nightly", queues={})
    async with database(owner, url) as found:
        await owner.migrate()
        async with owner.client():
            for name in ("nightly", "tick"):  # of an earlier run: it may be asked for the same nights again
                await owner.unschedule(name)
        with tempfile.TemporaryDirectory() as folder:
            async with two_workers(found, schema, Path(folder)) as engines:
                nights = await backfill(engines, Path(folder))
                seconds = await live(engines[0])
    print(f"{'ok   ' if nights else 'WRONG'} each night was started once, and its report is right")
    print(f"{'ok   ' if seconds else 'WRONG'} each second was started once")
    return nights and seconds


def main() -> int:
    """Exit status 0: all is right; 1: something is not; 2: it could not run."""
    parser = argparse.ArgumentParser(prog="python -m examples.nightly", description=__doc__)
    parser.add_argument("--database-url", help="default: GEN_DURABLE_DATABASE_URL, DATABASE_URL, the embedded server")
    parser.add_argument("--schema", default="nightly_example", help="made when missing (default: %(default)s)")
    options = parser.parse_args()
    try:
        return 0 if asyncio.run(example(options.database_url, options.schema)) else 1
    except GenDurableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
