"""Transactional steps whose commit gets no answer, whose worker is stopped, or whose server goes through a pooler."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transfer_worker
from harness import Chaos, Client, until
from proxy import Proxy
from transfer_worker import MACHINES, Pausing, PausingThread

from gen_durable import Context, Done, Engine, Machine, Next, Retry, Spawn, child, job, step
from gen_durable.events import CommitEvent, StaleEvent

pytestmark = pytest.mark.crash

SHORT = {"lease": 1.5, "heartbeat": 0.5, "poll_interval": 0.2, "transaction_idle_timeout": 2.0}


class Marked:
    """An engine behind the proxy, whose steps write into a table."""

    def __init__(self, build: Callable[..., Engine], chaos: Chaos, proxy: Proxy) -> None:
        self._build, self._chaos, self._proxy = build, chaos, proxy
        self.table = f"{chaos.schema}.notes"
        self.runs: list[str] = []
        self.stale: list[StaleEvent] = []
        self.commits: list[CommitEvent] = []
        chaos.rows("CREATE TABLE {schema}.notes (what text)")

    def engine(self, *machines: Any, **settings: Any) -> Engine:
        engine = self._build(*machines, url=self._proxy.url, transaction_pool_size=1, **settings)
        engine.on("stale", self.stale.append)
        engine.on("commit", self.commits.append)
        return engine

    async def write(self, ctx: Context, what: str) -> None:
        self.runs.append(what)
        await ctx.conn.execute(f"INSERT INTO {self.table} VALUES (%s)", (what,))

    def written(self) -> list[str]:
        return [what for (what,) in self._chaos.rows("SELECT what FROM {schema}.notes ORDER BY what")]


@pytest.fixture
def marked(build: Callable[..., Engine], chaos: Chaos, proxy: Proxy) -> Marked:
    return Marked(build, chaos, proxy)


@pytest.mark.parametrize("trick", ["lose answer", "lose question", "freeze"])
@pytest.mark.parametrize("kind", ["done", "next", "retry", "spawn"])
async def test_a_commit_whose_answer_is_lost_is_applied_once(
    marked: Marked, chaos: Chaos, proxy: Proxy, kind: str, trick: Any
) -> None:
    """R3, R5, R27: the connection breaks after the step's commit was sent. What is there counts and is not run again;
    what is not there is run again under the same claim, no attempt spent; never is anything applied twice."""

    # Where there are children the statements go one by one, and the COMMIT last.
    marker = b"Q\0\0\0\x0bCOMMIT\0" if kind == "spawn" else b"\0committing/"
    armed: dict[str, Any] = {"id": 0}

    class Walk(Machine, name="walk"):
        n: int = 0

        @step(transactional=True)
        async def first(self, ctx: Context) -> Any:
            await marked.write(ctx, f"{ctx.id} {self.n}")
            if ctx.id == armed["id"] and "rule" not in armed:
                armed["rule"] = proxy.on(marker, trick)
            self.n += 1
            if kind == "next" and self.n < 3:
                return Next(self.first)
            if kind == "retry" and self.n < 3:
                return Retry(delay=0)
            if kind == "spawn":
                return Spawn([child(leaf.bind(), key=f"leaf of {ctx.id}")], then=self.last)
            return Done(self.n)

        @step
        async def last(self, ctx: Context) -> Done:
            return Done(len(ctx.children))

    @job
    async def leaf() -> None: ...

    async with marked.engine(Walk, leaf, statement_timeout=1.5) as engine:
        warm = await engine.insert(Walk())  # else the first mention is where it is prepared
        await warm.result(timeout=20)
        marked.runs.clear()
        handle = await engine.insert(Walk(), delay=0.1)
        armed["id"] = handle.id
        wanted = {"done": 1, "spawn": 1}.get(kind, 3)
        assert await handle.result(timeout=30) == wanted
        assert armed["rule"].done.is_set()
        found = await handle.get()
        assert (found.attempt, found.crashes) == (2 if kind == "retry" else 0, 0)
    runs = [f"{handle.id} {n}" for n in range(1 if kind in ("done", "spawn") else 3)]
    assert [what for what in marked.written() if what.startswith(f"{handle.id} ")] == runs
    # A frozen link may have brought the statement to the server, or not: both are fine.
    assert marked.runs == (runs if trick == "lose answer" or marked.runs == runs else [runs[0], *runs])
    assert trick != "lose question" or len(marked.runs) == len(runs) + 1
    assert marked.stale == []


async def test_a_lost_commit_whose_claim_was_taken_is_stale(marked: Marked, chaos: Chaos, proxy: Proxy) -> None:
    """R4, R5, R27: the commit never arrived, and before anybody looks the row belongs to nobody: only the new run's
    SQL is there."""

    rules: list[Any] = []

    @job(name="slow", transactional=True)
    async def slow(ctx: Context, n: int) -> int:
        await marked.write(ctx, f"attempt {ctx.attempt}")
        if n and not rules:
            rules.append(proxy.on(b"\0committing/", "lose question"))
            rules.append(proxy.on(b"f.id = ANY (ARRAY[t::bigint])", "freeze"))
        return ctx.attempt

    async with marked.engine(slow, poll_interval=0.3) as engine:
        await (await engine.insert(slow.bind(n=0))).result(timeout=20)
        chaos.rows("DELETE FROM {schema}.notes")
        handle = await engine.insert(slow.bind(n=1))
        await until(lambda: len(rules) == 2 and rules[1].done.is_set())
        chaos.rows("UPDATE {schema}.instances SET status = 0, worker = NULL, rev = rev + 1, attempt = attempt + 1")
        proxy.cut(frozen=True)
        assert await handle.result(timeout=30) == 1
    assert marked.written() == ["attempt 1"]


# Stopped --------------------------------------------------------------------------------------------


@pytest.fixture
def bank(database_url: str, migrated: str, tmp_path: Path) -> Any:
    started = Chaos(database_url, migrated, tmp_path, Path(transfer_worker.__file__))
    started.rows("CREATE TABLE {schema}.accounts (id int PRIMARY KEY, cents bigint NOT NULL)")
    started.rows("CREATE TABLE {schema}.ledger (instance bigint, step text, source int, target int, cents bigint)")
    started.rows("INSERT INTO {schema}.accounts VALUES (1, 1000), (2, 1000)")
    yield started
    started.close()


def books(bank: Chaos) -> list[Any]:
    accounts = bank.rows("SELECT cents FROM {schema}.accounts ORDER BY id")
    return [cents for (cents,) in accounts] + bank.rows("SELECT count(*)::int FROM {schema}.ledger")


@pytest.mark.parametrize("machine", [Pausing, PausingThread])
async def test_a_worker_that_was_stopped_past_its_lease_writes_nothing(
    bank: Chaos, build: Callable[..., Engine], machine: type[Pausing | PausingThread]
) -> None:
    """R4, R5, R25: SIGSTOP in the middle of a transaction past the lease. The server ends what idles, so that another
    worker's run of the step gets the rows that were locked; after SIGCONT the old run commits nothing."""
    async with Client(build, MACHINES) as client:
        handle = await client.insert(machine(seconds=0.7))
        first = await bank.worker(**SHORT)
        number = await bank.registered(first)
        await until(lambda: bank.notes("run"))
        first.send(signal.SIGSTOP)
        await until(lambda: first.state() == "T")
        await bank.worker(**SHORT)
        assert await handle.result(timeout=30) == 1
        assert books(bank) == [900, 1100, (1,)]
        first.send(signal.SIGCONT)
        assert await bank.registered(first, but=number) != number
        another = await client.insert(machine(seconds=0.0))
        assert await another.result(timeout=30) == 0
    assert books(bank) == [800, 1200, (2,)]
    assert bank.outcomes(handle.id) == ["only/0/crashed", "only/1/done"]


@pytest.mark.parametrize("machine", [Pausing, PausingThread])
async def test_a_killed_worker_s_transaction_goes_at_once(
    bank: Chaos, build: Callable[..., Engine], machine: type[Pausing | PausingThread]
) -> None:
    """R2, R5, R25: kill -9 between the step's SQL and its commit: its locks don't hold the other worker's run up."""
    async with Client(build, MACHINES) as client:
        first = await bank.worker(**SHORT | {"transaction_idle_timeout": 600.0})
        handle = await client.insert(machine())
        await until(lambda: bank.notes("run"))
        first.kill()
        await bank.worker(**SHORT)
        assert await handle.result(timeout=20) == 1
    assert books(bank) == [900, 1100, (1,)]
