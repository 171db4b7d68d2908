"""Workers behind PgBouncer in transaction mode, where no session is one's own."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from chaos_worker import MACHINES, Chain, Hold, flaky, quick
from harness import Chaos, until
from psycopg import conninfo

from gen_durable import Backoff, Context, Done, Engine, Machine, Next, Spawn, child, job, step
from gen_durable.client.inserting import BulkItem

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(PROGRAM is None, reason="the pgbouncer program is not installed (apt-get install pgbouncer)"),
]


class Pooler:
    """PgBouncer in front of the database, with fewer server connections than clients, so that they take turns."""

    def __init__(self, folder: Path, url: str) -> None:
        given = conninfo.conninfo_to_dict(url)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        target = f"host={given['host']} port={given['port']} dbname={given['dbname']} user={given['user']}"
        if given.get("password"):
            target += f" password={given['password']}"
        self.folder = folder
        self.config = folder / "pgbouncer.ini"
        self.config.write_text(
            f"[databases]\npooled = {target}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\n"
            "unix_socket_dir =\nauth_type = any\nmax_client_conn = 200\n"
            "pool_mode = transaction\ndefault_pool_size = 4\n"
        )
        self.config.chmod(0o644)
        self.url = f"postgresql://any@127.0.0.1:{self.port}/pooled?sslmode=disable&gssencmode=disable"
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        assert PROGRAM is not None
        as_user = ["-u", "nobody"] if os.geteuid() == 0 else []
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([PROGRAM, *as_user, str(self.config)], stderr=log, stdout=log)
        await until(self.answers, why="an answer of pgbouncer")

    def answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture
def pooler(database_url: str) -> Iterator[Pooler]:
    folder = Path(tempfile.mkdtemp(prefix="gd-pool-"))
    folder.chmod(0o755)
    made = Pooler(folder, database_url)
    yield made
    made.kill()
    shutil.rmtree(folder)


def quiet(chaos: Chaos) -> None:
    """No worker had anything to complain about: no prepared statement that is not there, no lost lock."""
    for process in chaos.processes:
        text = process.log.read_text()
        assert "prepared statement" not in text
        assert "WARNING" not in text, text
        assert "ERROR" not in text, text


async def test_everything_works_through_a_transaction_pooler(
    chaos: Chaos, build: Callable[..., Engine], pooler: Pooler
) -> None:
    """R19, R21, R27: inserts, claims, run-ahead, retries, limits, ends; nobody is told, work is found by polling."""
    await pooler.start()
    async with build(*MACHINES, url=pooler.url, queues={}) as client:
        workers = [await chaos.worker(url=pooler.url) for _ in range(2)]
        inserted = await client.insert_many([quick.bind(n=n) for n in range(3000)])
        chains = [await client.insert(Chain(total=10)) for _ in range(30)]
        flakies = [await client.insert(flaky.bind(n=n), key=f"flaky:{n}") for n in range(20)]
        late = await client.insert(quick.bind(n=7), delay=0.3)
        await client.insert_many([BulkItem(quick.bind(n=n), concurrency_key=f"k{n % 5}") for n in range(200)])
        assert [await handle.result(timeout=30) for handle in chains] == [list(range(10))] * 30
        assert [await handle.result(timeout=30) for handle in flakies] == list(range(20))
        assert await late.result(timeout=30) == 7
        await chaos.settled()
        assert await inserted[-1].handle.result(timeout=5) == 2999
        assert {worker.pid for worker in await client.workers()} == {process.pid for process in workers}
        # Idle: nobody tells the workers, they look every half second.
        began = time.monotonic()
        assert await (await client.insert(quick.bind(n=1))).result(timeout=10) == 1
        assert time.monotonic() - began < 3
    assert chaos.rows("SELECT count(*), max(crashes) FROM {schema}.finished") == [(3000 + 30 + 20 + 1 + 200 + 1, 0)]
    assert chaos.rows("SELECT bool_or(locked) FROM {schema}.workers") == [(False,)]
    quiet(chaos)


async def test_schedules_through_a_transaction_pooler(
    chaos: Chaos, build: Callable[..., Engine], pooler: Pooler
) -> None:
    """R18, R19: nobody tells of a new schedule, it is found within the poll interval; then each second is on time and
    started once by one of two workers, in a transaction whose statements share a server process."""
    await pooler.start()
    async with build(*MACHINES, url=pooler.url, queues={}) as client:
        for _ in range(2):
            await chaos.worker(url=pooler.url, poll_interval=1.0)
        await client.schedule("s", "* * * * * *", quick.bind(n=1))
        count = "SELECT count(*) FROM {schema}.schedule_runs"
        await until(lambda: chaos.rows(count)[0][0] >= 4, 10, why="the first occurrences")
        await client.pause_schedule("s")
        await chaos.settled()
    rows = chaos.rows("SELECT occurrence, started_at, instance_id FROM {schema}.schedule_runs ORDER BY 1")
    assert [(at - rows[0][0]).total_seconds() for at, _, _ in rows] == list(range(len(rows)))
    assert max((started - at).total_seconds() for at, started, _ in rows[2:]) < 0.25
    assert chaos.rows("SELECT id FROM {schema}.finished ORDER BY 1") == [(id_,) for _, _, id_ in rows]
    quiet(chaos)


async def test_a_direct_url_for_listening_brings_wake_ups_and_a_quick_end_of_the_dead(
    chaos: Chaos, build: Callable[..., Engine], pooler: Pooler
) -> None:
    """R19, R25: with ``listen_url`` work is found at once, and a death within 3 s, as without a pooler."""
    await pooler.start()
    async with build(*MACHINES, url=pooler.url, queues={}) as client:
        first = await chaos.worker(url=pooler.url, listen_url=chaos.url)
        assert await (await client.insert(quick.bind(n=0))).result(timeout=10) == 0
        took = []
        for n in range(10):
            handle = await client.insert(quick.bind(n=n))
            began = time.monotonic()
            assert await handle.result(timeout=10) == n
            took.append(time.monotonic() - began)
        assert sorted(took)[5] < 0.25, "half of them well under the poll of half a second"
        await client.insert(Hold())
        await until(lambda: chaos.notes("run"))
        second = await chaos.worker(url=pooler.url, listen_url=chaos.url)
        killed_at = first.kill()
        (again,) = await until(lambda: chaos.notes("run", pid=second.pid))
        assert again["at"] - killed_at < 3
        await chaos.settled()


async def test_a_death_behind_a_pooler_is_found_within_the_lease(
    chaos: Chaos, build: Callable[..., Engine], pooler: Pooler
) -> None:
    """R25: there is no session lock to lose, so silence decides."""
    settings = {"lease": 2.0, "heartbeat": 0.5}
    await pooler.start()
    async with build(*MACHINES, url=pooler.url, queues={}) as client:
        handle = await client.insert(Hold())
        first = await chaos.worker(url=pooler.url, **settings)
        await until(lambda: chaos.notes("run"))
        await chaos.worker(url=pooler.url, **settings)
        first.kill()
        assert await handle.result(timeout=15) == 1


async def test_workers_outlive_the_death_of_the_pooler(
    chaos: Chaos, build: Callable[..., Engine], pooler: Pooler
) -> None:
    """R27: the pooler is killed under load, and another takes its place: nothing is lost, and nobody is dead."""
    await pooler.start()
    async with build(*MACHINES, queues={}) as client:
        await chaos.worker(url=pooler.url)
        await client.insert_many([Chain(total=30, pause=0.01) for _ in range(100)])
        for progress in (500, 1500):
            await until(lambda progress=progress: len(chaos.notes("run")) > progress)  # type: ignore[misc]
            pooler.kill()
            await pooler.start()
        await chaos.settled()
    assert chaos.rows("SELECT count(*), max(crashes) FROM {schema}.finished") == [(100, 0)]
    assert {note["connection"] for note in chaos.notes("reconnect")} >= {"commit"}
    assert chaos.notes("stale") == []
    assert "prepared statement" not in chaos.processes[0].log.read_text()


async def test_transactional_steps_through_a_transaction_pooler(
    build: Callable[..., Engine], chaos: Chaos, pooler: Pooler
) -> None:
    """R5: async and plain steps, with children and errors: each writes once, nothing is prepared, and a transaction
    that idles is ended all the same."""
    chaos.rows("CREATE TABLE {schema}.notes (id bigint, what text)")
    insert = f"INSERT INTO {chaos.schema}.notes VALUES (%s, %s)"

    class Walk(Machine, name="walk", transactional=True, retry=Backoff(max_attempts=3, initial=0.0, jitter=False)):
        idles: bool = False

        @step
        async def first(self, ctx: Context) -> Spawn:
            await ctx.conn.execute(insert, (ctx.id, f"first {ctx.attempt}"))
            if ctx.attempt == 0 and self.idles:
                await asyncio.sleep(5.0)  # the server is to end it before
            elif ctx.attempt == 0:
                raise ValueError("not yet")
            return Spawn([child(leaf.bind(n=n)) for n in range(2)], then=self.last)

        @step
        def last(self, ctx: Context) -> Next | Done:
            ctx.conn.execute(insert, (ctx.id, "last"))
            return Done([one.result for one in ctx.children])

    @job(name="leaf", transactional=True)
    async def leaf(n: int, ctx: Context) -> int:
        await ctx.conn.execute(insert, (ctx.id, "leaf"))
        return n

    await pooler.start()
    # The pooler has four server connections: those that transactions hold must leave some to everything else.
    few = {"transaction_pool_size": 1, "transaction_idle_timeout": 2.0, "poll_interval": 0.2}
    engine = build(Walk, leaf, url=pooler.url, **few)
    async with engine:
        handles = [await engine.insert(Walk(idles=n == 0)) for n in range(30)]
        assert [await handle.result(timeout=60) for handle in handles] == [[0, 1]] * 30
    counted = chaos.rows("SELECT what, count(*) FROM {schema}.notes GROUP BY 1 ORDER BY 1")
    assert counted == [("first 1", 30), ("last", 30), ("leaf", 60)]
