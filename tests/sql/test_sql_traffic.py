"""How many statements the engine sends: one for each batch, and next to none when there is nothing to do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from gen_durable import Engine, job
from gen_durable._runtime import control, link
from gen_durable._store import connection
from gen_durable._store.operation import Request, Row
from gen_durable.events import ClaimEvent, CommitEvent

JOBS = 3000


@job
async def nothing(n: int) -> None:
    return None


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what a worker sends, by statement."""
    counted: Counter[str] = Counter()

    async def counting(to: Any, request: Request) -> list[Row]:
        counted[request.statement.name] += 1
        return await connection.fetch(to, request)

    for module in (link, control):
        monkeypatch.setattr(module, "fetch", counting)
    return counted


async def test_a_backlog_costs_one_statement_a_batch(build: Callable[..., Engine], sent: Counter[str]) -> None:
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
        counted = sent.copy()
    assert sum(claim.got for claim in claims) == JOBS
    assert counted["committing/commit"] == len(commits)
    assert len(claims) <= counted["claiming/claim"] <= len(claims) + 5
    assert counted["claiming/claim"] < JOBS / 20
    assert counted["committing/commit"] < JOBS / 20
    assert counted["claiming/release"] == 0
    rest = counted.total() - counted["claiming/claim"] - counted["committing/commit"]
    assert rest < 30, counted


@pytest.mark.crash
async def test_an_idle_worker_is_quiet(build: Callable[..., Engine], sent: Counter[str]) -> None:
    """Fewer than two statements a second in total, with every default."""
    engine = build(nothing)
    seconds = 5.0
    async with engine:
        handle = await engine.insert(nothing.bind(n=1))
        await handle.result(timeout=10)
        before = sent.copy()
        never = asyncio.Event()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(never.wait(), seconds)
        during = sent - before
    assert during.total() / seconds < 2, during
    assert during["workers/heartbeat"] >= 1
