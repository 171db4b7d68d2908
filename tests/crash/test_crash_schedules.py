"""Schedules while the workers that start their occurrences are killed."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from chaos_worker import MACHINES, quick
from harness import Chaos, Client, Process, until

from gen_durable import Engine

# The acceptance run: GEN_DURABLE_SCHEDULE_SECONDS=60
SECONDS = float(os.environ.get("GEN_DURABLE_SCHEDULE_SECONDS", "12"))
SECOND = timedelta(seconds=1)

pytestmark = [pytest.mark.crash, pytest.mark.timeout(60 + 5 * SECONDS)]


async def kill_around_the_seconds(chaos: Chaos, workers: list[Process]) -> int:
    """Kills one of the workers at a random moment around each full second and starts another; how many died."""
    dice, kills = random.Random(11), 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        ((to_next,),) = chaos.rows("SELECT 1 - mod(extract(epoch FROM clock_timestamp()), 1)")
        # The pace of the kills, which is what the test is about: from just before an occurrence to just after it.
        await asyncio.sleep(max(0.0, float(to_next) + dice.uniform(-0.02, 0.04)))
        victim = dice.choice([worker for worker in workers if worker.alive])
        victim.kill()
        kills += 1
        workers[workers.index(victim)] = chaos.spawn()
    return kills


async def test_each_occurrence_starts_once_while_workers_are_killed_around_it(
    chaos: Chaos, build: Callable[..., Engine]
) -> None:
    """R18: three workers of which one dies around each second of an every-second schedule, and another starts: each
    occurrence has one instance, none is missing between the first and the last, and each instance is done once."""
    async with Client(build, MACHINES) as client:
        workers = [await chaos.worker() for _ in range(3)]
        await client.schedule("line", "* * * * * *", quick.bind(n=1), catch_up="all")
        await client.schedule("interval", None, quick.bind(n=2), every=SECOND, catch_up="all")
        count = "SELECT count(*) FROM {schema}.schedule_runs"
        await until(lambda: chaos.rows(count)[0][0] >= 2, why="the first occurrences")
        kills = await kill_around_the_seconds(chaos, workers)
        for name in ("line", "interval"):
            await client.pause_schedule(name)
        await chaos.settled()
    recorded = chaos.rows(
        "SELECT s.name, r.occurrence, r.instance_id FROM {schema}.schedule_runs r "
        "JOIN {schema}.schedules s ON s.id = r.schedule ORDER BY 1, 2"
    )
    # The table of instances alone shows it too: no two of a schedule have the same time.
    inserted = chaos.rows("SELECT id FROM {schema}.finished ORDER BY id")
    assert sorted(row[2] for row in recorded) == [row[0] for row in inserted]
    for name in ("line", "interval"):
        times: list[datetime] = [at for of, at, _ in recorded if of == name]
        assert times == [times[0] + n * SECOND for n in range(len(times))]
        assert len(times) >= SECONDS - 1
    print(f"{len(recorded)} occurrences in {SECONDS:g} s, {kills} kills")
    assert kills >= SECONDS / 2


async def test_what_was_due_while_no_worker_lived_is_started_on_return(
    chaos: Chaos, build: Callable[..., Engine]
) -> None:
    """R18: all workers die; after their return each schedule catches up once, as its policy says."""
    async with Client(build, MACHINES) as client:
        workers = [await chaos.worker() for _ in range(3)]
        for policy in ("last", "all", "none"):
            await client.schedule(policy, "30 * * * *", quick.bind(n=1), catch_up=policy)
        for worker in workers:
            worker.kill()
        made = {one.name: one.next_at for one in await client.schedules()}
        chaos.rows("UPDATE {schema}.schedules SET next_at = next_at - interval '50 hours'")
        for _ in range(3):
            chaos.spawn()
        await until(
            lambda: chaos.rows("SELECT bool_and(next_at > now()) FROM {schema}.schedules") == [(True,)],
            why="that the schedules have caught up",
        )
        await chaos.settled()
        assert {one.name: one.next_at for one in await client.schedules()} == made
    counted = chaos.rows(
        "SELECT s.name, count(*), count(DISTINCT r.occurrence) FROM {schema}.schedule_runs r "
        "JOIN {schema}.schedules s ON s.id = r.schedule GROUP BY 1 ORDER BY 1"
    )
    assert counted == [("all", 50, 50), ("last", 1, 1)]
    assert chaos.rows("SELECT count(*) FROM {schema}.finished") == [(51,)]
