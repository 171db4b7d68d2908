"""The store's own operations on one connection, driven from code that is not async, and what the tables hold."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
from sql_stage import Connection, Stage, encode

from gen_durable._runtime.committer import Committer
from gen_durable._runtime.held import Waits, decode_waits
from gen_durable._runtime.record import Record
from gen_durable._store.connection import fetch
from gen_durable._store.inserting import NewInstance
from gen_durable._store.operation import Operation, Request, Row, drive, drive_together
from gen_durable.events import Hooks

__all__ = ["Claim", "LiveRow", "Tables", "Wire"]


DUMP = """
SELECT jsonb_build_object(
    'instances', (
        SELECT jsonb_agg(jsonb_build_array(
            id, status, worker, rev, attempt, crashes, key, scope, parent_id, parent_spawn, awaits, spawn,
            children_left, children_spare, cancel_rest,
            CASE WHEN due_at = 'infinity' THEN 'never' WHEN due_at > {clock} THEN 'later' ELSE 'now' END
        )) FROM {schema}.instances
    ),
    'finished', (SELECT jsonb_agg(jsonb_build_array(id, status, rev, key)) FROM {schema}.finished),
    'signals', (
        SELECT jsonb_agg(jsonb_build_array(instance_id, status, name, payload, dedup_key) ORDER BY instance_id, id)
        FROM {schema}.signals
    ),
    'workers', (SELECT jsonb_agg(id) FROM {schema}.workers)
)
"""


class LiveRow(NamedTuple):
    id: int
    status: int
    worker: int | None
    rev: int
    attempt: int
    crashes: int
    key: str | None
    scope: int | None
    parent: int | None
    parent_spawn: int | None
    awaits: list[str] | None
    spawn: int | None
    left: int | None
    spare: int | None
    rest: bool | None
    due: str


@dataclass
class Tables:
    """A snapshot of the tables."""

    live: dict[int, LiveRow] = field(default_factory=dict)
    stubs: dict[int, str] = field(default_factory=dict)
    ended: dict[int, tuple[int, int, str | None]] = field(default_factory=dict)  # status, rev, key
    inboxes: dict[int, list[tuple[int, str, int | None, str | None]]] = field(default_factory=dict)
    workers: set[int] = field(default_factory=set)


@dataclass
class Claim:
    """What a worker believes that it holds: as much of a ``Held`` as a commit needs."""

    worker: int
    id: int
    rev: int
    attempt: int
    crashes: int
    parent_id: int | None
    waits: Waits | None
    handed: list[tuple[int, int]]  # number and status of each signal in ctx.awaited
    spawning: list[NewInstance] | None = None
    gone: bool = False
    gate: str | None = None

    @classmethod
    def of(cls, worker: int, row: Row) -> Claim:
        """A row as ``claim.sql`` gives it."""
        waits = None if row[12] is None else decode_waits(row[12])
        handed = [] if waits is None else [(letter.payload, letter.status) for letter in waits.awaited()]
        return cls(worker, row[0], row[1], row[5], row[6], row[11], waits, handed)


class KeptPlace:
    """A worker's place for a row that a signal may wake; see ``_store.signalling.Place``."""

    def __init__(self, worker: int, lane: int) -> None:
        self.worker = worker
        self.lanes = [lane]
        self.claims: list[Claim] = []

    def claimed(self, row: Row) -> None:
        self.claims.append(Claim.of(self.worker, row))


class Wire:
    """A connection set up like a worker's, and a loop to drive it."""

    def __init__(self, runner: asyncio.Runner, stage: Stage, connection: Connection) -> None:
        self._runner, self._stage, self._connection = runner, stage, connection
        self.sql = stage.sql

    def run(self, operation: Operation[Any]) -> Any:
        return self._runner.run(drive(operation, self.fetch))

    def together(self, operation: Operation[Any]) -> Any:
        return self._runner.run(drive_together(operation, self.fetch))

    async def fetch(self, request: Request) -> list[Row]:
        return await fetch(self._connection, request)

    def ask(self, text: str, *values: Any) -> list[Row]:
        return self._runner.run(self._stage.ask(text, *values))

    def statement(self, name: str, **values: Any) -> list[Row]:
        return self._runner.run(self.fetch(self.sql[name].bind(**values)))

    # What a worker does ---------------------------------------------------------------------------

    def register(self, worker: int) -> None:
        self._runner.run(self._stage.register(worker, seen=-3600.0))

    def claim(self, worker: int, lane: int, room: int) -> list[Claim]:
        wants = encode([{"lane": lane, "pool": 0, "room": room, "solo": True}])
        return [Claim.of(worker, row) for row in self.statement("claiming/claim", worker=worker, wants=wants)]

    def commit(self, worker: int, batch: list[tuple[Claim, Record]]) -> set[tuple[int, int]]:
        """The claims (id, rev) whose outcome is committed, by the code of the worker's own flusher."""
        link: Any = SimpleNamespace(fetch=self.fetch, together=lambda operation: drive_together(operation, self.fetch))
        settled: Any = SimpleNamespace(awake=lambda lanes: None)
        committer = Committer(link, self.sql, worker, settled, Hooks())
        batch.sort(key=lambda entry: entry[0].id)
        entries: Any = batch
        return self._runner.run(committer.send(link, entries, []))

    def reap(self) -> int:
        return self._runner.run(self._stage.reap(worker=0))[0]

    # What is there --------------------------------------------------------------------------------

    def clear(self) -> None:
        for table in ("instances", "finished", "signals", "transitions", "workers"):
            self.ask(f"DELETE FROM {{schema}}.{table}")

    def tables(self) -> Tables:
        found = Tables()
        ((dump,),) = self.ask(DUMP)
        parts = msgspec.json.decode(dump)
        for values in parts["instances"] or ():
            live = LiveRow(*values)
            if live.status == 9:
                assert live.key is not None
                found.stubs[live.id] = live.key
            else:
                found.live[live.id] = live
        for id_, status, rev, key in parts["finished"] or ():
            assert id_ not in found.ended, "it has ended twice"
            found.ended[id_] = (status, rev, key)
        for id_, status, name, number, dedup in parts["signals"] or ():
            found.inboxes.setdefault(id_, []).append((status, name, number, dedup))
        found.workers = set(parts["workers"] or ())
        return found

    def history(self) -> set[tuple[int, int, int]]:
        rows = self.ask("SELECT instance_id, seq, outcome FROM {schema}.transitions")
        assert len(rows) == len(set(rows)), "a transition is there twice"
        return {(id_, seq, outcome) for id_, seq, outcome in rows}
