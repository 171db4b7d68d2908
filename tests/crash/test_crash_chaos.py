"""Many jobs, two workers, and somebody who kills one of them with -9 every second."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable

import pytest
from chaos_worker import MACHINES, Chain, brief
from harness import Chaos, Client, Process, until

from gen_durable import Engine

# The acceptance run: GEN_DURABLE_CHAOS_JOBS=100000 GEN_DURABLE_CHAOS_SECONDS=30
JOBS = int(os.environ.get("GEN_DURABLE_CHAOS_JOBS", "3000"))
SECONDS = float(os.environ.get("GEN_DURABLE_CHAOS_SECONDS", "8"))
CHAINS = max(JOBS // 100, 1)
CHAIN_STEPS = 20

pytestmark = [pytest.mark.crash, pytest.mark.timeout(60 + 10 * SECONDS)]


async def kill_now_and_then(chaos: Chaos, workers: list[Process], seconds: float) -> int:
    """Kills one of the workers at random every second and starts another; answers with how many died."""
    dice = random.Random(7)
    kills = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(1.0)  # the pace of the kills, which is what the test is about
        victim = dice.choice([worker for worker in workers if worker.alive])
        victim.kill()
        kills += 1
        workers[workers.index(victim)] = chaos.spawn()
    return kills


async def test_every_job_is_done_once_while_workers_are_killed_every_second(
    chaos: Chaos, build: Callable[..., Engine]
) -> None:
    """R2, R3, R25: jobs are inserted all the while and workers die all the while: every job is done, once in the table,
    none failed, none left, whatever moment the kills met."""
    ticks = int(SECONDS * 10)
    async with Client(build, MACHINES) as client:
        workers = [chaos.spawn(), chaos.spawn()]
        killing = asyncio.create_task(kill_now_and_then(chaos, workers, SECONDS))
        began = time.monotonic()
        await client.insert_many([Chain(total=CHAIN_STEPS, pause=0.01) for _ in range(CHAINS)])
        for tick in range(ticks):
            await client.insert_many([brief.bind(n=n) for n in range(tick, JOBS, ticks)])
            await asyncio.sleep(max(0.0, began + (tick + 1) / 10 - time.monotonic()))  # spread over the whole time
        kills = await killing
        await until(lambda: chaos.left() == 0, 60 + 5 * SECONDS, why="the end of all jobs")
        took = time.monotonic() - began
    table = "SELECT l.machine, f.status, count(*), count(DISTINCT f.id), max(f.crashes) FROM {schema}.finished f"
    counted = chaos.rows(table + " JOIN {schema}.lanes l ON l.id = f.lane GROUP BY 1, 2 ORDER BY 1, 2")
    assert [row[:4] for row in counted] == [("brief", 6, JOBS, JOBS), ("chain", 6, CHAINS, CHAINS)]
    assert chaos.left() == 0
    table = "SELECT count(*), count(DISTINCT f.state ->> 'n') FROM {schema}.finished f"
    query = " JOIN {schema}.lanes l ON l.id = f.lane WHERE l.machine = 'brief' AND f.result = f.state -> 'n'"
    assert chaos.rows(table + query) == [(JOBS, JOBS)]
    # The chains' numbers are their own, in order: no step was lost, none was rewound, none was applied twice.
    whole = str(list(range(CHAIN_STEPS)))
    assert chaos.rows("SELECT count(*) FROM {schema}.finished WHERE result::text = %s", whole) == [(CHAINS,)]
    nexts = "SELECT count(*), count(DISTINCT (instance_id, seq)) FROM {schema}.transitions WHERE outcome = 0"
    assert chaos.rows(nexts) == [((CHAIN_STEPS - 1) * CHAINS,) * 2]
    runs = chaos.journal.read_bytes().count(b"#")
    most = max(row[4] for row in counted)
    print(f"{JOBS} jobs in {runs} runs, {kills} kills in {SECONDS:g} s, done after {took:.1f} s, {most} deaths at most")
    assert runs >= JOBS
    assert kills >= SECONDS * 0.7
