"""How many statements the engine sends: one for each batch, and next to none when there is nothing to do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from gen_durable import Engine, Schedule, job
from gen_durable._runtime import control, link
from gen_durable._store import connection
from gen_durable._store.operation import Request, Row
from gen_durable.events import ClaimEvent, CommitEvent

JOBS = 3000


@job
async def nothing(n: int) -> None:
    return None


class Sent(Counter[str]):
    """How often each statement was sent; says so when there is more."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.more = asyncio.Event()


@pytest.fixture
async def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Counts what a worker sends, from each of its threads."""
    counted = Sent()

    async def counting(to: Any, request: Request) -> list[Row]:
        rows = await connection.fetch(to, request)
        counted[request.statement.name] += 1
        counted.loop.call_soon_threadsafe(counted.more.set)
        return rows

    for module in (link, control):
        monkeypatch.setattr(module, "fetch", counting)
    return counted


async def test_a_backlog_costs_one_statement_a_batch(build: Callable[..., Engine], sent: Sent) -> None:
    """One claim statement for each batch that is claimed, one commit for each batch of outcomes."""
    client = build(nothing)
    async with client.client():
        await client.insert_many([nothing.bind(n=n) for n in range(JOBS)])
    claims: list[ClaimEvent] = []
    commits: list[CommitEvent] = []
    done = asyncio.Event()

    def committed(event: CommitEvent) -> None:
        commits.append(event)
        if sum(commit.size for commit in commits) == JOBS:
            done.set()

    engine = build(nothing)
    engine.on("claim", claims.append)
    engine.on("commit", committed)
    async with engine, asyncio.timeout(30):
        await done.wait()
        counted = Counter(sent)
    assert sum(claim.got for claim in claims) == JOBS
    assert counted["committing/end"] == len(commits)
    assert len(claims) <= counted["claiming/claim"] <= len(claims) + 5
    assert counted["claiming/claim"] < JOBS / 20
    assert counted["committing/end"] < JOBS / 20
    assert counted["claiming/release"] == 0
    rest = counted.total() - counted["claiming/claim"] - counted["committing/end"]
    assert rest < 30, counted


@pytest.mark.crash
async def test_an_idle_worker_is_quiet(build: Callable[..., Engine], sent: Sent) -> None:
    """Fewer than two statements a second in total, with every default."""
    seconds = 5.0
    started = {
        "claiming/claim",
        "timing/promote",
        "workers/reap",
        "workers/heartbeat",
        "pruning/sweep",
        "schedules/due",
    }
    schedules = [Schedule("yearly", "@yearly", nothing.bind(n=1))]
    async with build(nothing, schedules=schedules), asyncio.timeout(30):
        while not started <= sent.keys():
            await asyncio.wait_for(sent.more.wait(), 10)
            sent.more.clear()
        before = Counter(sent)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), seconds)
        during = Counter(sent) - before
    assert during.total() / seconds < 2, during
    assert during["workers/heartbeat"] >= 1
    assert during["schedules/due"] == 0  # they are looked at when one is due or changed, and once a minute
