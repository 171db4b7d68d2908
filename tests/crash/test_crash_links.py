"""Connections that are cut in the middle of a statement, and links that freeze."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from chaos_worker import MACHINES, Chain, Hold, open_journal, quick
from harness import Chaos, until
from proxy import Proxy

from gen_durable import Engine
from gen_durable.errors import DatabaseUnreachable
from gen_durable.events import CommitEvent, ReconnectEvent, StaleEvent

pytestmark = pytest.mark.crash

# What a statement's parameters contain: the outcomes of a commit, the wants of a claim.
COMMIT = b'"took":'
CLAIM = b'"pool":'
INSERT = b'{"n":77}'
PAST = datetime(2020, 1, 1, tzinfo=UTC)  # a row with a time of its own is not born claimed


class Watched:
    """An engine behind the proxy, in this process, and what it reports."""

    def __init__(self, build: Callable[..., Engine], chaos: Chaos, proxy: Proxy, **settings: Any) -> None:
        open_journal(str(chaos.journal))
        self.engine = build(*MACHINES, **{"url": proxy.url, **settings})
        self.reconnects: list[ReconnectEvent] = []
        self.stale: list[StaleEvent] = []
        self.commits: list[CommitEvent] = []
        self.engine.on("reconnect", self.reconnects.append)
        self.engine.on("stale", self.stale.append)
        self.engine.on("commit", self.commits.append)

    def reconnected(self, *names: str) -> bool:
        return {event.connection for event in self.reconnects} >= set(names)


@pytest.fixture
def watch(build: Callable[..., Engine], chaos: Chaos, proxy: Proxy) -> Callable[..., Watched]:
    def make(**settings: Any) -> Watched:
        return Watched(build, chaos, proxy, **settings)

    return make


# Cut ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trick", ["lose answer", "lose question"])
@pytest.mark.parametrize("times", [1, 3])
async def test_a_commit_whose_answer_is_lost_counts_once(
    watch: Callable[..., Watched], chaos: Chaos, proxy: Proxy, trick: Any, times: int
) -> None:
    """R3, R27: the connection is cut when a commit was sent and before its answer came: what is there counts, what is
    not there is sent again; no outcome is lost or there twice, none is called stale, and the chain goes on."""
    watched = watch()
    async with watched.engine as engine:
        warm = await engine.insert(quick.bind(n=0))
        assert await warm.result(timeout=10) == 0
        rule = proxy.on(COMMIT, trick, times)
        handle = await engine.insert(Chain(total=6))
        assert await handle.result(timeout=20) == list(range(6))
        assert rule.done.is_set()
        assert [entry.outcome for entry in await engine.history(handle.id)] == ["next"] * 5 + ["done"]
        await until(lambda: len([e for e in watched.reconnects if e.connection == "commit"]) >= times)
    assert watched.stale == []
    assert [note["n"] for note in chaos.notes("run")] == list(range(6)), "no step had to run twice"


async def test_a_terminal_commit_whose_answer_is_lost_counts_once(
    watch: Callable[..., Watched], chaos: Chaos, proxy: Proxy
) -> None:
    """R3, R27: the same for the outcomes that end instances: one terminal row each, and nobody waits for ever."""
    watched = watch()
    async with watched.engine as engine:
        await (await engine.insert(quick.bind(n=0))).result(timeout=10)
        rule = proxy.on(COMMIT, "lose answer", times=2)
        inserted = await engine.insert_many([quick.bind(n=n) for n in range(200)])
        assert [await item.handle.result(timeout=20) for item in inserted] == list(range(200))
        assert rule.done.is_set()
    assert watched.stale == []
    assert chaos.rows("SELECT count(*), count(DISTINCT id) FROM {schema}.finished") == [(201, 201)]


async def test_an_outcome_that_goes_back_counts_once(watch: Callable[..., Watched], chaos: Chaos, proxy: Proxy) -> None:
    """R3, R27: the same for an outcome that hands the row back to its queue (here: run-ahead is off)."""
    watched = watch(run_ahead=False)
    async with watched.engine as engine:
        await (await engine.insert(quick.bind(n=0))).result(timeout=10)
        proxy.on(COMMIT, "lose answer", times=2)
        handle = await engine.insert(Chain(total=5))
        assert await handle.result(timeout=20) == list(range(5))
    assert watched.stale == []
    assert [note["n"] for note in chaos.notes("run")] == list(range(5))
    assert chaos.outcomes(handle.id) == ["count/0/next"] * 4 + ["count/0/done"]


async def test_a_commit_whose_answer_is_lost_is_stale_when_the_claim_was_taken(
    watch: Callable[..., Watched], chaos: Chaos, proxy: Proxy
) -> None:
    """R4, R27: the question was lost, and when it is asked again the claim belongs to nobody any more: stale."""
    watched = watch(queues={"default": 1}, poll_interval=0.3)
    async with watched.engine as engine:
        handle = await engine.insert(Hold(seconds=0.5))
        await until(lambda: chaos.notes("run"))
        rule = proxy.on(COMMIT, "lose question")
        await asyncio.to_thread(rule.done.wait, 10)
        proxy.freeze()
        chaos.rows("UPDATE {schema}.instances SET status = 0, worker = NULL, rev = rev + 1, attempt = attempt + 1")
        proxy.thaw()
        assert await handle.result(timeout=20) == 1
    assert [event.id for event in watched.stale] == [handle.id]


async def test_the_rows_of_a_claim_whose_answer_is_lost_are_given_back(
    watch: Callable[..., Watched], chaos: Chaos, proxy: Proxy
) -> None:
    """R25, R27: rows that were claimed by a statement whose answer never came run at once, no attempt spent."""
    watched = watch()
    async with watched.engine as engine:
        await (await engine.insert(quick.bind(n=0))).result(timeout=10)
        rule = proxy.on(CLAIM, "lose answer", times=2)
        began = time.monotonic()
        # More than it has places for: so they are not born claimed.
        inserted = await engine.insert_many([quick.bind(n=n) for n in range(60)])
        assert [await item.handle.result(timeout=20) for item in inserted] == list(range(60))
        assert rule.done.is_set()
        # Long before the lease is over: they are looked for as soon as the link is there again.
        assert time.monotonic() - began < 5
    assert chaos.rows("SELECT max(attempt), max(crashes), count(*) FROM {schema}.finished") == [(0, 0, 61)]


@pytest.mark.parametrize("trick", ["lose answer", "lose question"])
async def test_an_insert_whose_answer_is_lost_leaves_no_row_behind_that_nobody_runs(
    watch: Callable[..., Watched], chaos: Chaos, proxy: Proxy, trick: Any
) -> None:
    """R25, R27: the row is there, born as a claim of this worker, which never heard of it: it runs at once."""
    watched = watch()
    async with watched.engine as engine:
        await (await engine.insert(quick.bind(n=0))).result(timeout=10)
        for n in range(10):  # until nothing is announced any more, and rows are born claimed
            await (await engine.insert(quick.bind(n=n))).result(timeout=10)
        rule = proxy.on(INSERT, trick)
        began = time.monotonic()
        with pytest.raises(DatabaseUnreachable, match="may or may not"):
            await engine.insert(quick.bind(n=77))
        assert rule.done.is_set()
        if trick == "lose answer":
            await until(lambda: chaos.rows("SELECT id FROM {schema}.finished WHERE result = '77'"))
            assert time.monotonic() - began < 5
        else:
            await (await engine.insert(quick.bind(n=1))).result(timeout=10)
    assert chaos.rows("SELECT id FROM {schema}.instances") == []
    ran = chaos.rows("SELECT rev FROM {schema}.finished WHERE result = '77'")
    assert ran == ([(3,)] if trick == "lose answer" else []), "born, given back, claimed, done"
    assert chaos.rows("SELECT max(attempt), max(crashes) FROM {schema}.finished") == [(0, 0)]


async def test_connections_that_are_cut_all_the_time_lose_nothing(
    watch: Callable[..., Watched], chaos: Chaos, proxy: Proxy
) -> None:
    """R3, R27: under load every connection is cut ten times; each instance ends once, with its own numbers."""
    watched = watch()
    async with watched.engine as engine, asyncio.timeout(60):
        await engine.insert_many([Chain(total=30, pause=0.005) for _ in range(200)])
        for round_ in range(1, 11):
            await until(lambda round_=round_: len(chaos.notes("run")) > 500 * round_)  # type: ignore[misc]
            assert proxy.cut() >= 1
        await chaos.settled()
    results = chaos.rows("SELECT result::text, count(*) FROM {schema}.finished GROUP BY 1")
    assert results == [(str(list(range(30))), 200)]
    assert chaos.rows("SELECT count(*), count(DISTINCT (instance_id, seq)) FROM {schema}.transitions") == [
        (200 * 29, 200 * 29)
    ]
    assert watched.stale == []


async def test_a_database_that_breaks_every_statement_is_not_hammered(
    watch: Callable[..., Watched], chaos: Chaos, proxy: Proxy
) -> None:
    """R27: connections can be made, but each claim breaks its own: tried again with growing pauses, no busy loop."""
    watched = watch()
    async with watched.engine as engine:
        await (await engine.insert(quick.bind(n=0))).result(timeout=10)
        before = proxy.accepted
        rule = proxy.on(CLAIM, "lose question", times=1_000_000)
        handle = await engine.insert(quick.bind(n=1), at=PAST)
        await asyncio.sleep(4)  # how often it tries in this time is the point
        tries = proxy.accepted - before
        assert 3 <= tries < 40
        rule.times = 0
        assert await handle.result(timeout=20) == 1


# Frozen ---------------------------------------------------------------------------------------------

IMPATIENT = {"statement_timeout": 1.0, "lease": 6.0, "heartbeat": 0.5}


async def test_a_frozen_link_is_noticed_and_work_goes_on_when_it_thaws(
    watch: Callable[..., Watched], chaos: Chaos, proxy: Proxy
) -> None:
    """R27: nothing passes and nothing is closed. Every connection is given up within its timeout; after the thaw all is
    as if nothing had been, though for a while nobody could commit, claim, or give a sign of life."""
    watched = watch(**IMPATIENT)
    async with watched.engine as engine:
        chain = await engine.insert(Chain(total=60, pause=0.02))
        await until(lambda: len(chaos.notes("run")) > 5)
        number = await own_number(chaos)
        proxy.freeze()
        frozen_at = time.monotonic()
        stuck_at = len(chaos.notes("run"))
        await asyncio.sleep(3)  # longer than every timeout, shorter than the lease
        assert len(chaos.notes("run")) <= stuck_at + 1, "R1: without a commit no step goes on"
        proxy.thaw()
        assert await chain.result(timeout=20) == list(range(60))
        assert watched.reconnected("commit", "control", "service")
        assert time.monotonic() - frozen_at < 20
        assert await own_number(chaos) == number, "nobody took it for dead"
        assert await (await engine.insert(quick.bind(n=7))).result(timeout=10) == 7
    assert watched.stale == []
    assert chaos.outcomes(chain.id) == ["count/0/next"] * 59 + ["count/0/done"]


async def own_number(chaos: Chaos) -> int:
    return int(chaos.rows("SELECT id FROM {schema}.workers")[0][0])


async def test_only_the_frozen_connection_is_replaced(
    watch: Callable[..., Watched], chaos: Chaos, proxy: Proxy
) -> None:
    """R27: one connection goes silent in the middle of a commit: a new one takes its place within the timeout."""
    watched = watch(**IMPATIENT)
    async with watched.engine as engine:
        assert await (await engine.insert(quick.bind(n=0))).result(timeout=10) == 0
        for marker in (COMMIT, CLAIM):
            rule = proxy.on(marker, "freeze")
            began = time.monotonic()
            handle = await engine.insert(Chain(total=3), at=PAST)
            assert await handle.result(timeout=20) == [0, 1, 2]
            assert rule.done.is_set()
            assert 0.9 < time.monotonic() - began < 10
    assert {event.connection for event in watched.reconnects} == {"commit", "claim"}
    assert watched.stale == []


async def test_a_frozen_worker_is_replaced_by_another_after_its_lease(
    watch: Callable[..., Watched], chaos: Chaos, proxy: Proxy
) -> None:
    """R4, R25: a worker that is cut off from the database for longer than its lease is dead to the others; what it held
    runs elsewhere, its own outcome counts for nothing, and it comes back as a new worker."""
    settings = {"statement_timeout": 1.0, "lease": 2.0, "heartbeat": 0.5}
    watched = watch(**settings)
    async with watched.engine as engine:
        handle = await engine.insert(Hold(seconds=1.0))
        await until(lambda: chaos.notes("run"))
        number = await own_number(chaos)
        proxy.freeze()
        other = await chaos.worker(**settings)
        await until(lambda: chaos.rows("SELECT 1 FROM {schema}.finished"))
        assert chaos.notes("worker_dead", id=number)
        other.kill()
        proxy.thaw()
        await until(lambda: chaos.rows("SELECT 1 FROM {schema}.workers WHERE name LIKE 't_%%' AND id <> %s", number))
        assert await handle.result(timeout=10) == 1
        assert await (await engine.insert(quick.bind(n=7))).result(timeout=30) == 7
    assert chaos.outcomes(handle.id) == ["wait/0/crashed", "wait/1/done"]


async def test_a_worker_drains_within_its_timeout_while_the_link_is_frozen(
    watch: Callable[..., Watched], chaos: Chaos, proxy: Proxy
) -> None:
    """R26, R27: no answer from the database keeps a worker from ending; what it held comes back by its lease."""
    watched = watch(**IMPATIENT, drain_timeout=2.0)
    async with watched.engine as engine:
        handle = await engine.insert(Hold())
        await engine.insert(Chain(total=10_000, pause=0.01))
        await until(lambda: len(chaos.notes("run")) > 3)
        proxy.freeze()
        began = time.monotonic()
        await engine.stop()
        took = time.monotonic() - began
    # The drain's own 2 s, the 1 s that steps get to be cancelled, and the 1 s after which each connection is given up.
    assert took < 2.0 + 6.0
    proxy.thaw()
    await chaos.worker(lease=6.0, heartbeat=0.5)
    assert (await until(lambda: chaos.rows("SELECT attempt FROM {schema}.finished"))) == [(1,)]
    assert handle


async def test_the_end_of_an_old_session_is_not_taken_for_the_workers_death(chaos: Chaos, proxy: Proxy) -> None:
    """R25: a worker gave up its frozen connection and has a new one; the server still believes in the old session and
    its lock. When that goes, the worker lives all the same."""
    settings = {"statement_timeout": 1.0, "lease": 12.0, "heartbeat": 6.0}
    await chaos.worker(queues={"other": 1}, **settings)
    rule = proxy.on(b"suspect_at = NULL", "freeze")  # its first heartbeat
    process = await chaos.worker(listen_url=proxy.url, **settings)
    number = await chaos.registered(process)
    await asyncio.to_thread(rule.done.wait, 10)
    await until(lambda: chaos.notes("reconnect", connection="control"))
    assert proxy.cut(frozen=True) == 1
    await asyncio.sleep(3)  # in which a death would be found; the next heartbeat comes later
    assert chaos.notes("worker_dead") == []
    await until(lambda: chaos.rows("SELECT 1 FROM {schema}.workers WHERE id = %s AND locked", number), 15)


async def test_a_new_life_that_fails_is_followed_by_another(
    watch: Callable[..., Watched], chaos: Chaos, proxy: Proxy
) -> None:
    """R27: a worker that was declared dead starts anew, and its first statements break: it tries again, and again."""
    watched = watch(heartbeat=0.2, lease=3.0)
    async with watched.engine as engine:
        await (await engine.insert(quick.bind(n=0))).result(timeout=10)
        rule = proxy.on(b"ensure_partitions", "lose question", times=2)
        chaos.rows("DELETE FROM {schema}.workers")
        await asyncio.to_thread(rule.done.wait, 10)
        assert rule.done.is_set()
        assert await (await engine.insert(quick.bind(n=1))).result(timeout=20) == 1
        assert len(await engine.workers()) == 1


async def test_a_worker_that_is_stopped_while_it_receives_a_claim_holds_no_rows(
    chaos: Chaos, build: Callable[..., Engine], proxy: Proxy
) -> None:
    """R25: a claim's answer that is too big for the buffers keeps the statement open in the server, its rows locked;
    the server gives such a connection up, and the rows run elsewhere within the lease."""
    settings = {"lease": 15.0, "heartbeat": 5.0}
    async with build(*MACHINES, queues={}) as client:
        count = 60
        await client.insert_many([Hold(seconds=0.0, filling="x" * 500_000) for _ in range(count)])
        rule = proxy.on(CLAIM, "freeze")
        first = chaos.spawn(url=proxy.url, queues={"default": 200}, **settings)
        await asyncio.to_thread(rule.done.wait, 20)
        frozen_at = time.monotonic()
        await until(lambda: stuck_in_send(chaos), why="a claim that waits for its reader")
        first.kill()
        second = await chaos.worker(**settings)
        await chaos.settled(40)
        assert {note["pid"] for note in chaos.notes("run")} == {second.pid}
        assert time.monotonic() - frozen_at < 25
    assert chaos.rows("SELECT count(*), max(crashes) FROM {schema}.finished") == [(count, 0)]


def stuck_in_send(chaos: Chaos) -> bool:
    query = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'ClientWrite' AND query LIKE '%%{schema}%%'"
    return bool(chaos.rows(query))
