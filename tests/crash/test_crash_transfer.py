"""Money that moves while workers, connections and the server die: to the cent, and each transfer once."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness import Chaos, Process, Server, until
from proxy import Proxy
from transfer_worker import MACHINES, PlainTransfer, ThreadTransfer, Transfer, TwoTransfers

from gen_durable import Engine
from gen_durable.errors import DatabaseUnreachable

# The acceptance run: GEN_DURABLE_TRANSFERS=20000 GEN_DURABLE_TRANSFER_SECONDS=60
TRANSFERS = int(os.environ.get("GEN_DURABLE_TRANSFERS", "1000"))
SECONDS = float(os.environ.get("GEN_DURABLE_TRANSFER_SECONDS", "6"))
ACCOUNTS = 200
OPENING = 100_000  # cents in each
SETTINGS: dict[str, Any] = {
    "lease": 3.0, "heartbeat": 0.5, "poll_interval": 0.5, "max_crashes": 10_000, "transaction_idle_timeout": 3.0,
}  # fmt: skip

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120 + 10 * SECONDS + TRANSFERS / 50)]


class Bank(Chaos):
    """Workers that reach the bank through a proxy, and what its books say."""

    proxy: Proxy

    def open_accounts(self) -> None:
        self.rows("CREATE TABLE {schema}.accounts (id int PRIMARY KEY, cents bigint NOT NULL)")
        columns = "instance bigint, step text, source int, target int, cents bigint"
        self.rows(f"CREATE TABLE {{schema}}.ledger ({columns})")
        opened = "INSERT INTO {schema}.accounts SELECT n, %s FROM generate_series(1, %s) n"
        self.rows(opened, OPENING, ACCOUNTS)

    def one_more(self) -> Process:
        return self.spawn(**SETTINGS, url=self.proxy.url)

    def applied(self) -> tuple[int, int]:
        """How many transfers the ledger holds, and how many different ones."""
        ((rows, transfers),) = self.rows("SELECT count(*), count(DISTINCT (instance, step)) FROM {schema}.ledger")
        return int(rows), int(transfers)

    def balanced(self) -> None:
        """The accounts hold what the ledger says, and together what they held at first."""
        assert self.rows("SELECT sum(cents) FROM {schema}.accounts") == [(OPENING * ACCOUNTS,)]
        moves = "SELECT target AS id, cents FROM {schema}.ledger UNION ALL SELECT source, -cents FROM {schema}.ledger"
        query = f"SELECT a.id FROM {{schema}}.accounts a LEFT JOIN ({moves}) m ON m.id = a.id "
        assert self.rows(query + "GROUP BY a.id HAVING min(a.cents) <> %s + coalesce(sum(m.cents), 0)", OPENING) == []


@pytest.fixture
async def bank(server: Server, tmp_path: Path) -> AsyncIterator[Bank]:
    await Engine(server.url, schema="bank", name="bank").migrate()
    with Proxy(server.url) as proxy:
        started = Bank(server.url, "bank", tmp_path, Path(__file__).with_name("transfer_worker.py"))
        started.proxy = proxy
        started.open_accounts()
        yield started
        started.close()


async def havoc(bank: Bank, server: Server, workers: list[Process], over: asyncio.Event) -> dict[str, int]:
    """Every half second a worker is killed, all connections are cut, or answers are lost; now and then the server."""
    dice = random.Random(11)
    done = {"kills": 0, "cuts": 0, "lost": 0, "crashes": 0}
    kinds = itertools.cycle(["kills", "lost", "cuts", "kills"])
    restarts = max(1, round(SECONDS / 10))
    began = time.monotonic()
    while not over.is_set():
        await asyncio.sleep(0.5)  # the pace of the blows, which is what the test is about
        for place, worker in enumerate(workers):
            if not worker.alive:  # one that found no server when it started, and gave up
                workers[place] = bank.one_more()
        kind = next(kinds)
        if done["crashes"] < restarts and time.monotonic() - began > (done["crashes"] + 0.5) * SECONDS / restarts:
            kind = "crashes"
        done[kind] += 1
        if kind == "kills":
            place = dice.randrange(len(workers))
            workers[place].kill()
            workers[place] = bank.one_more()
        elif kind == "cuts":
            bank.proxy.cut()
        elif kind == "lost":
            for marker in (b'EXECUTE "committing/', b'"took":'):
                bank.proxy.on(marker, dice.choice(["lose answer", "lose question"]), times=5)
        else:
            await server.crash_and_restart()
    return done


async def move_money(bank: Bank, server: Server, kinds: list[Any], count: int) -> dict[str, int]:
    """Inserts transfers over some seconds and waits for the last of them; answers with what has happened to them."""
    dice = random.Random(5)
    transfers = []
    for n in range(count):
        source, target = dice.sample(range(1, ACCOUNTS + 1), 2)
        transfers.append(kinds[n % len(kinds)](source=source, target=target, cents=2 * dice.randint(1, 5000)))
    workers = [bank.one_more(), bank.one_more(), bank.one_more()]
    over = asyncio.Event()
    async with Engine(server.url, machines=MACHINES, queues={}, schema="bank", name="client") as client:
        for worker in workers:
            await bank.registered(worker)
        blows = asyncio.create_task(havoc(bank, server, workers, over))
        began, parts = time.monotonic(), 20
        for part in range(parts):
            while True:
                try:
                    await client.insert_many(transfers[part::parts])
                    break
                except (DatabaseUnreachable, psycopg.OperationalError):
                    await asyncio.sleep(0.1)  # the server is away; what was inserted all the same is done twice
            await asyncio.sleep(max(0.0, began + (part + 1) * SECONDS / parts - time.monotonic()))
        over.set()
        done = await blows
        workers.append(bank.one_more())  # the others may just have found no server
        await until(lambda: bank.left() == 0, 60 + count / 30, why="the end of all transfers")
    for worker in workers:
        worker.kill()
    return done


async def test_each_transfer_is_applied_once_whatever_dies(bank: Bank, server: Server) -> None:
    """R5: workers are killed, connections cut, answers lost, the server crashes: the ledger has each transfer of each
    instance that is done exactly once, and the accounts hold what it says."""
    done = await move_money(bank, server, [Transfer, Transfer, ThreadTransfer, TwoTransfers], TRANSFERS)
    assert bank.rows("SELECT id, error FROM {schema}.finished WHERE status <> 6") == []
    rows, transfers = bank.applied()
    runs = bank.rows(
        "SELECT sum(CASE WHEN l.machine = 'two_transfers' THEN 2 ELSE 1 END)::int, max(f.attempt), max(f.crashes), "
        "count(*) FROM {schema}.finished f JOIN {schema}.lanes l ON l.id = f.lane"
    )
    wanted, attempts, crashes, ended = runs[0]
    print(f"{ended} instances, {rows} transfers, {done}, at most {attempts} attempts and {crashes} crashes")
    assert ended >= TRANSFERS
    assert rows == transfers == wanted, "each once"
    bank.balanced()
    assert all(done.values()), done


async def test_the_same_without_a_transaction_applies_some_twice(bank: Bank, server: Server) -> None:
    """R2, R5: the scenario can fail: a step that commits its SQL by itself, before its outcome, is applied again."""
    count = max(min(TRANSFERS, 1500), 1000)
    done = await move_money(bank, server, [PlainTransfer], count)
    rows, transfers = bank.applied()
    print(f"{rows} transfers applied of {transfers}, {done}")
    assert transfers >= count
    assert rows > transfers, "if none is applied twice, the other test proves nothing"
    bank.balanced()
