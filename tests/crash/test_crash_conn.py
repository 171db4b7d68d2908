"""The blocking client, and calls in a caller's transaction: servers stop, links freeze, a pooler is in between."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import psycopg
import pytest
from chaos_worker import MACHINES, Hold, quick
from harness import Chaos, until
from proxy import Proxy
from test_crash_database import Server
from test_crash_pgbouncer import PROGRAM, Pooler

from gen_durable import Engine, SyncClient, embedded
from gen_durable.errors import DatabaseUnreachable

pytestmark = pytest.mark.crash


def patiently(client: SyncClient, n: int) -> int:
    """Inserts as a caller does who tries again, with a key that makes that harmless."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return client.insert(quick.bind(n=n), key=f"n{n}", on_conflict="existing").id
        except DatabaseUnreachable:
            assert time.monotonic() < deadline
            time.sleep(0.05)  # the server comes back by itself, and tells nobody


async def test_a_blocking_client_outlives_a_crash_of_the_server(tmp_path: Path) -> None:
    """R27: calls fail while it is away, and work again after; a wait that was under way goes on, and is told."""
    folder = Path(tempfile.mkdtemp(prefix="gd-conn-"))
    folder.chmod(0o711)
    server = Server(folder / "pg")
    try:
        await Engine(server.url, schema="farm", name="farm").migrate()
        async with Engine(server.url, schema="farm", name="worker", machines=MACHINES) as engine:
            with SyncClient(server.url, schema="farm", machines=MACHINES, queues=["default"]) as client:
                first = client.insert(quick.bind(n=1), delay=6)
                waiting = asyncio.create_task(asyncio.to_thread(first.result, 60))
                await until(lambda: client._calls._ear.hears, why="its ear")
                server.crash()
                await until(server.gone, why="the end of the server")
                with pytest.raises(DatabaseUnreachable):
                    client.counts()
                await server.restart()
                await asyncio.to_thread(patiently, client, 2)
                assert await asyncio.to_thread(client.result, "n2", 30) == 2
                assert await waiting == 1
            assert engine is not None
    finally:
        embedded.stop(folder / "pg")
        shutil.rmtree(folder)


def test_a_frozen_link_is_given_up(database_url: str, migrated: str, proxy: Proxy) -> None:
    """R27: a statement that gets no answer ends after ``statement_timeout``; then all is well again."""
    with SyncClient(proxy.url, schema=migrated, machines=MACHINES, statement_timeout=1.0) as client:
        client.insert(quick.bind(n=1), key="before")
        proxy.freeze()
        began = time.monotonic()
        with pytest.raises(DatabaseUnreachable, match="may or may not"):
            client.insert(quick.bind(n=2), key="during")
        assert 0.9 < time.monotonic() - began < 5
        proxy.thaw()
        proxy.cut()
        patiently(client, 3)
        assert {item.key for item in client.list().items} >= {"before", "n3"}


@pytest.fixture
def pooler(database_url: str) -> Iterator[Pooler]:
    folder = Path(tempfile.mkdtemp(prefix="gd-pool-"))
    folder.chmod(0o755)
    made = Pooler(folder, database_url)
    yield made
    made.kill()
    shutil.rmtree(folder)


@pytest.mark.skipif(PROGRAM is None, reason="the pgbouncer program is not installed (apt-get install pgbouncer)")
async def test_through_a_transaction_pooler(
    chaos: Chaos, build: Callable[..., Engine], database_url: str, pooler: Pooler
) -> None:
    """R19, R20: all statements of a caller's transaction share a server process; its commit wakes who listens directly,
    and a worker whose ear the pooler takes finds the rows by polling. The blocking client waits by looking."""
    await pooler.start()
    async with build(*MACHINES, url=pooler.url, listen_url=database_url, poll_interval=60) as engine:
        async with await psycopg.AsyncConnection.connect(pooler.url, prepare_threshold=None) as conn:
            handle = await engine.insert(quick.bind(n=1), conn=conn)
            again = (await engine.insert_many([quick.bind(n=n) for n in range(3000)], conn=conn))[-1].handle
            assert chaos.rows("SELECT count(*) FROM {schema}.all_instances") == [(0,)]
        assert await handle.result(20) == 1
        assert await again.result(20) == 2999
        other = await asyncpg.connect(pooler.url.partition("?")[0], ssl=False, statement_cache_size=0)
        async with other.transaction():
            handle = await engine.insert(quick.bind(n=2), conn=other)
        await other.close()
        assert await handle.result(20) == 2
    async with build(*MACHINES, url=pooler.url, poll_interval=0.5) as engine:

        def blocking() -> list[object]:
            with engine.sync_client() as client, psycopg.connect(pooler.url, prepare_threshold=None) as conn:
                handle = client.insert(quick.bind(n=3), conn=conn)
                conn.commit()
                holds = client.insert(Hold())
                client.cancel(holds.id)
                return [handle.result(20), holds.get().status]

        assert await asyncio.to_thread(blocking) == [3, "cancelled"]
