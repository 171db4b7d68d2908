"""One engine on one server, ready to run any workload."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import cpu
from benchmarks.agents import AgentFailed, Agents
from benchmarks.board import Board
from benchmarks.registry import Entry
from benchmarks.server import Server

STALL = 30.0
"""Seconds without a single finished job after which a run is given up."""


class Bench:
    """An engine, its databases and the board on which its workers count."""

    def __init__(self, server: Server, entry: Entry, python: Path, board: Board, extra: dict[str, Any]) -> None:
        self.server, self.entry, self.board = server, entry, board
        self._python, self._extra = python, extra
        self.database = f"bench_{entry.name}"

        self._stocks: set[str] = set()

    @contextmanager
    def fresh(
        self, workload: str, options: Mapping[str, Any] | None = None, template: str | None = None
    ) -> Iterator[Agents]:
        """An empty database, or a copy of a stock, and a clear board.

        ``options`` go before the engine's settings for that workload.
        """
        url = self.server.recreate(self.database, template)
        try:
            yield self._agents(url, workload, options)
        finally:
            self.server.drop(self.database)

    def stock(self, workload: str, rows: str, seed: str, count: int) -> str:
        """The name of a database with so many rows of a kind, made of one ``seed``; kept until ``close``."""
        name = f"{self.database}_{rows}_{count}"
        if name not in self._stocks:
            try:
                agents = self._agents(self.server.recreate(name), workload, None)
                agents.call("prepare", kind=seed, count=1)
                with psycopg.connect(self.server.url(name), autocommit=True) as connection:
                    self.fill(connection, rows, count)
                    connection.execute("VACUUM ANALYZE")
            except BaseException:
                self.server.drop(name)
                raise
            self._stocks.add(name)
        return name

    def fill(self, connection: psycopg.Connection[Any], rows: str, count: int) -> None:
        """Make so many rows of a kind out of the one that is there."""
        for statement in self.entry.rows[rows]:
            parameters = [count] if "$1" in statement else None
            psycopg.RawCursor(connection).execute(statement.encode(), parameters)

    def close(self) -> None:
        """Drop the stocks."""
        for name in self._stocks:
            self.server.drop(name)
        self._stocks.clear()

    def _agents(self, url: str, workload: str, options: Mapping[str, Any] | None) -> Agents:
        self.board.clear()
        settings = {**self.entry.settings(workload), **self._extra, **(options or {})}
        return Agents(self.entry, self._python, url, self.board, settings)

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.server.url(self.database), autocommit=True)

    def vacuum(self) -> None:
        """Statistics as on a system that has run for a while."""
        with self.connect() as connection:
            connection.execute("VACUUM ANALYZE")

    def scaled(self, workload: str, count: int) -> int:
        """The number of jobs for this engine."""
        return max(1, round(count * self.entry.scale(workload)))

    def count(self, connection: psycopg.Connection[Any], statement: str) -> int:
        row = connection.execute(statement.encode()).fetchone()
        assert row is not None
        return int(row[0])


class Costs:
    """WAL, commits and CPU from construction to ``stop``."""

    def __init__(self, bench: Bench, pids: list[int]) -> None:
        self._server, self._database, self._pids = bench.server, bench.database, pids
        self.commits = self._server.commits(self._database)
        self._start = self._read()

    def _read(self) -> tuple[float, int, float | None, float, float | None, float]:
        workers = sum(cpu.seconds(pid) for pid in self._pids)
        return (
            time.monotonic(),
            self._server.wal(),
            self._server.cpu(),
            workers,
            cpu.busy(),
            time.process_time(),
        )

    def stop(self) -> None:
        self._end = self._read()

    def per_job(self, jobs: int, own_commits: int = 0) -> dict[str, float]:
        """Costs per job; to be asked when the sessions are closed: their commits are counted only then."""
        time.sleep(0.1)  # a session's last statistics arrive while it ends
        commits = self._server.commits(self._database) - self.commits - own_commits
        (t0, wal0, server0, workers0, busy0, me0), (t1, wal1, server1, workers1, busy1, me1) = (
            self._start,
            self._end,
        )
        costs = {"wal_bytes": (wal1 - wal0) / jobs, "commits": commits / jobs}
        if self._pids:
            costs["client_ms"] = 1000 * (workers1 - workers0) / jobs
        if server0 is not None and server1 is not None:
            costs["server_ms"] = 1000 * (server1 - server0) / jobs
            if busy0 is not None and busy1 is not None and self._pids:
                others = (busy1 - busy0) - (server1 - server0) - (workers1 - workers0) - (me1 - me0)
                costs["others_pct"] = max(0.0, 100 * others / (t1 - t0))
        return costs


def wait(condition: Callable[[], bool], workers: list[Any], limit: float = STALL) -> None:
    """Wait until it holds; raises ``AgentFailed`` when a worker dies or nothing happens for ``limit`` seconds."""
    end = time.monotonic() + limit
    while not condition():
        if any(worker.poll() is not None for worker in workers):
            raise AgentFailed("a worker died")
        if time.monotonic() > end:
            raise AgentFailed(f"nothing happened for {limit:g} s")
        time.sleep(0.002)


def until_hits(bench: Bench, wanted: int, workers: list[Any]) -> None:
    """Wait until so many bodies have run, for as long as there is some progress."""
    while (seen := bench.board.hits()) < wanted:
        wait(lambda seen=seen: bench.board.hits() > seen, workers)  # type: ignore[misc]


def until_committed(bench: Bench, connection: psycopg.Connection[Any], staying: int = 0, limit: float = STALL) -> int:
    """All bodies have run; wait for the last commits, until only ``staying`` are left. How many looks it took."""
    polls, give_up = 1, time.monotonic() + limit
    while (left := bench.count(connection, bench.entry.left)) > staying:
        if time.monotonic() > give_up:
            raise AgentFailed(f"{bench.entry.name}: all jobs ran, {left - staying} of them are not finished")
        polls += 1
        time.sleep(0.002)
    return polls
