"""Two processes that insert the same keys at the same time, in opposite orders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

WORKER = Path(__file__).with_name("insert_worker.py")
ROUNDS = int(os.environ.get("GEN_DURABLE_INSERT_ROUNDS", "4"))
KEYS = 5000

pytestmark = [pytest.mark.crash, pytest.mark.timeout(60 + 20 * ROUNDS)]


class Inserter:
    """A process of its own; answers a line of keys with what became of each."""

    def __init__(self, url: str, schema: str, name: str) -> None:
        config = json.dumps({"url": url, "schema": schema, "name": name})
        pipe = subprocess.PIPE
        self.popen = subprocess.Popen([sys.executable, str(WORKER), config], stdin=pipe, stdout=pipe, text=True)
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, f"the process ended with {self.popen.wait(10)}"
        return line.strip()

    def begin(self, keys: list[str], *, together: bool) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps({"keys": keys, "together": together}) + "\n")
        self.popen.stdin.flush()

    def answer(self) -> list[tuple[int, bool]]:
        return [(id_, duplicate) for id_, duplicate in json.loads(self.read())]

    def end(self) -> None:
        with self.popen:
            self.popen.kill()


@pytest.fixture
def inserters(database_url: str, migrated: str) -> Iterator[list[Inserter]]:
    started: list[Inserter] = []
    try:
        started.append(Inserter(database_url, migrated, "first"))
        started.append(Inserter(database_url, migrated, "second"))
        yield started
    finally:
        for inserter in started:
            inserter.end()


def ask(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


def test_the_same_keys_in_opposite_orders(database_url: str, migrated: str, inserters: list[Inserter]) -> None:
    """R16: no deadlock, each key once, and the one that lost is told who holds it; GEN_DURABLE_INSERT_ROUNDS=50."""
    for number in range(ROUNDS):
        keys = [f"{number}:{place:05}" for place in range(KEYS)]
        for inserter, listed in zip(inserters, (keys, keys[::-1]), strict=True):
            inserter.begin(listed, together=number % 2 == 1)
        first, second = inserters[0].answer(), inserters[1].answer()[::-1]
        for key, one, other in zip(keys, first, second, strict=True):
            assert one[0] == other[0], key
            assert {one[1], other[1]} == {True, False}, key
    held = ask(database_url, f"SELECT count(*), count(DISTINCT key) FROM {migrated}.instances")
    assert held == [(ROUNDS * KEYS, ROUNDS * KEYS)]
