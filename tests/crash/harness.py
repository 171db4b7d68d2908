"""Worker processes that are started, watched and killed for real, and what they have noted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from gen_durable import Engine, embedded
from gen_durable._store.connection import fetch_sync
from gen_durable._store.operation import catalog
from gen_durable.embedded._server import scram_secret
from gen_durable.status import TransitionKind

WORKER = Path(__file__).with_name("chaos_worker.py")
PATIENCE = 30.0

Rows = list[tuple[Any, ...]]


async def until(what: Callable[[], Any], timeout: float = PATIENCE, *, why: str = "") -> Any:
    """Waits until ``what()`` is true and returns it.

    It looks again every few milliseconds: what it waits for happens in another process, which has no event to wait on.
    """
    deadline = time.monotonic() + timeout
    while not (found := what()):
        assert time.monotonic() < deadline, f"{why or what} did not happen in {timeout:g} s"
        await asyncio.sleep(0.01)
    return found


class Process:
    """One worker process; its pid is ours until :meth:`end`, so that nobody else's is ever signalled."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.popen = popen
        self.pid = popen.pid
        self.log = log

    def send(self, number: signal.Signals) -> float:
        """Sends a signal; answers with the moment (monotonic)."""
        self.popen.send_signal(number)
        return time.monotonic()

    def kill(self) -> float:
        """kill -9; answers with the moment (monotonic)."""
        at = self.send(signal.SIGKILL)
        self.popen.wait(10)
        return at

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def state(self) -> str:
        """The kernel's letter for it: ``T`` is stopped."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    async def exited(self, timeout: float = PATIENCE) -> int:
        """Waits for its end; answers with its exit code."""
        try:
            await until(lambda: not self.alive, timeout, why=f"the end of worker {self.pid}")
        except AssertionError as error:
            raise AssertionError(f"{error}; its log ends with:\n{self.tail()}") from None
        return int(self.popen.returncode)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def end(self) -> None:
        if self.alive:
            self.popen.kill()
            self.popen.wait(10)


class Chaos:
    """Starts workers on one schema and reads what they note."""

    def __init__(self, url: str, schema: str, folder: Path, script: Path = WORKER) -> None:
        self.url = url
        self.schema = schema
        self.folder = folder
        self.script = script
        self.journal = folder / "journal"
        self.journal.touch()
        self.processes: list[Process] = []
        self._offset = 0
        self._notes: list[dict[str, Any]] = []
        self._connection: psycopg.Connection[Any] | None = None

    # Processes ------------------------------------------------------------------------------------

    def spawn(self, **settings: Any) -> Process:
        """Starts a worker; settings are the engine's."""
        number = len(self.processes)
        log = self.folder / f"worker-{number}.log"
        config = {
            "url": self.url,
            "schema": self.schema,
            "name": f"w{number}",
            "journal": str(self.journal),
            "queues": {"default": 50},
            **settings,
        }
        with log.open("wb") as out:
            popen = subprocess.Popen(
                [sys.executable, str(self.script), json.dumps(config)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        process = Process(popen, log)
        self.processes.append(process)
        return process

    async def worker(self, **settings: Any) -> Process:
        """Starts a worker and waits until it is registered."""
        process = self.spawn(**settings)
        await self.registered(process)
        return process

    async def registered(self, process: Process, *, but: int = 0) -> int:
        """Waits until the process is in the workers table (under another id than ``but``); answers with its id."""

        def look() -> int:
            assert process.alive, f"worker {process.pid} ended: {process.tail()}"
            found = self.rows("SELECT id FROM {schema}.workers WHERE pid = %s AND id <> %s", process.pid, but)
            return int(found[0][0]) if found else 0

        return int(await until(look, why=f"the registration of worker {process.pid}"))

    def close(self) -> None:
        for process in self.processes:
            process.end()
        self._disconnect()

    # What can be seen -----------------------------------------------------------------------------

    def rows(self, query: str, *parameters: Any) -> Rows:
        """Asks the database, directly, over a connection of its own; asks again while the server is away."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if self._connection is None:
                    self._connection = psycopg.connect(self.url, autocommit=True)
                cursor = self._connection.execute(query.replace("{schema}", self.schema).encode(), parameters)
                return [] if cursor.description is None else cursor.fetchall()
            except psycopg.OperationalError:
                self._disconnect()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)  # it comes back by itself, and tells nobody

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def notes(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        """What the workers have noted so far."""
        with self.journal.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._notes += [json.loads(line) for line in whole.splitlines()]
        return [n for n in self._notes if n["kind"] == kind and all(n.get(k) == v for k, v in fields.items())]

    def executing(self, process: Process | None = None) -> int:
        """How many claims the table shows (those of one process)."""
        query = "SELECT count(*) FROM {schema}.instances i LEFT JOIN {schema}.workers w ON w.id = i.worker"
        query += " WHERE i.status = 2"
        if process is None:
            return int(self.rows(query)[0][0])
        return int(self.rows(query + " AND w.pid = %s", process.pid)[0][0])

    def left(self) -> int:
        """How many live instances there are."""
        return int(self.rows("SELECT count(*) FROM {schema}.instances")[0][0])

    def outcomes(self, instance: int) -> list[str]:
        """The history of an instance: ``step/attempt/outcome`` of each transition."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            rows = fetch_sync(connection, catalog(self.schema)["reading/history"].bind(id=instance))
        return [f"{step}/{attempt}/{TransitionKind(outcome).label}" for _, step, attempt, outcome, *_ in rows]

    async def settled(self, timeout: float = PATIENCE) -> None:
        """Waits until nothing is left to do, and checks that nothing failed."""
        await until(lambda: self.left() == 0, timeout, why="the end of all instances")
        assert self.rows("SELECT id, error FROM {schema}.finished WHERE status <> 6") == []


class Server:
    """A server of the test's own, on one port over restarts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = embedded.start(path)
        self._port = embedded.status(path).port
        # The same password, hashed as quickly as a throw-away server's: these tests connect a great deal.
        password = urlsplit(self.url).password
        assert password
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"ALTER ROLE postgres PASSWORD '{scram_secret(password, 1)}'".encode())

    def crash(self) -> None:
        """What ``pg_ctl stop -m immediate`` sends, which itself refuses to run as root: no checkpoint, no farewell."""
        pid = embedded.status(self.path).pid
        assert pid is not None
        os.kill(pid, signal.SIGQUIT)

    def gone(self) -> bool:
        return embedded.status(self.path).pid is None

    async def restart(self) -> None:
        assert await asyncio.to_thread(embedded.start, self.path, port=self._port) == self.url

    async def crash_and_restart(self, absence: float = 0.0) -> None:
        self.crash()
        await until(self.gone, why="the end of the server")
        await asyncio.sleep(absence)  # how long it is away is what the test is about
        await self.restart()


class Client:
    """A client engine on the same schema, which runs nothing."""

    def __init__(self, build: Callable[..., Engine], machines: tuple[Any, ...], **settings: Any) -> None:
        self._engine = build(*machines, queues={}, **settings)

    async def __aenter__(self) -> Engine:
        return await self._engine.__aenter__()

    async def __aexit__(self, *error: object) -> None:
        await self._engine.__aexit__(*error)
