"""The floor: a bare loop that claims a batch, runs it and commits it, on a slim table of its own.

It keeps what can't be left out (rows in Postgres, ``SKIP LOCKED``, a fencing token, one commit per batch
before anything goes on, Python code per job, state decoded and encoded as JSON) and nothing else: no history,
retries, limits, keys, hooks, heartbeat, notifications. What an engine costs more is its price.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, LiteralString

import msgspec
import psycopg

from benchmarks.adapter import FILLER, STEPS
from benchmarks.board import Board

TABLE = """
CREATE TABLE jobs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    due_at timestamptz NOT NULL DEFAULT now(),
    rev int NOT NULL DEFAULT 0,
    worker int,
    status smallint NOT NULL DEFAULT 0,
    priority smallint NOT NULL DEFAULT 0,
    kind text NOT NULL,
    state jsonb NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX jobs_ready ON jobs (priority, due_at, id) WHERE status = 0;
"""
INSERT: LiteralString = "INSERT INTO jobs (kind, state) SELECT %s, jsonb_array_elements(%s::jsonb) RETURNING id"
# A join with the picked rows would be planned for a tenth of the table, and become a scan of it.
CLAIM: LiteralString = """
UPDATE jobs j SET status = 1, worker = %(worker)s, rev = j.rev + 1
WHERE j.id = ANY (ARRAY(
    SELECT id FROM jobs WHERE status = 0 ORDER BY priority, due_at, id LIMIT %(batch)s
    FOR NO KEY UPDATE SKIP LOCKED
))
RETURNING j.id, j.rev, j.kind, j.state
"""
COMMIT: LiteralString = """
UPDATE jobs j SET status = o.status, state = o.state, rev = j.rev + 1
FROM jsonb_to_recordset(%s::jsonb) AS o (id bigint, rev int, status smallint, state jsonb)
WHERE j.id = o.id AND j.rev = o.rev
RETURNING j.id, j.rev
"""

_encode = msgspec.json.Encoder().encode


class State(msgspec.Struct):
    number: int
    step: int = 0
    note: str = ""


_decode = msgspec.json.Decoder(State).decode


class Outcome(msgspec.Struct):
    id: int
    rev: int
    status: int
    state: State


class _Raw(psycopg.adapt.Loader):
    """Hands jsonb over as bytes, for one decode into the final type."""

    def load(self, data: psycopg.abc.Buffer) -> bytes:
        return bytes(data)


async def connect(url: str) -> psycopg.AsyncConnection[Any]:
    connection = await psycopg.AsyncConnection.connect(url, autocommit=True, prepare_threshold=0)
    connection.adapters.register_loader("jsonb", _Raw)
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    await connection.execute("SET jit = off")
    return connection


class Inserter:
    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    async def one(self, kind: str, number: int) -> None:
        await self._connection.execute(INSERT, (kind, _encode([_state(kind, number)]).decode()))

    async def many(self, kind: str, count: int) -> None:
        states = [_state(kind, number) for number in range(count)]
        await self._connection.execute(INSERT, (kind, _encode(states).decode()))


def _state(kind: str, number: int) -> State:
    return State(number, note=FILLER if kind == "chain" else "")


class Loop:
    """Two connections, so that the next claim runs while the last batch commits."""

    def __init__(self, claims: Any, commits: Any, board: Board, options: dict[str, Any]) -> None:
        self._claims, self._commits, self._board = claims, commits, board
        self._batch = options.get("batch", 500)
        self._next = 1 if options.get("run_ahead", True) else 0  # the status of a chain whose step is done
        self._kinds: dict[str, Callable[[State], Awaitable[None]]] = {
            "noop": self._noop,
            "chain": self._step,
        }

    async def run(self) -> None:
        flushing: asyncio.Task[None] | None = None
        while True:
            rows = await self._claim()
            if flushing is not None:
                await flushing
            if not rows:
                await asyncio.sleep(0.01)
            flushing = asyncio.create_task(self._work(rows)) if rows else None

    async def _claim(self) -> list[tuple[int, int, str, bytes]]:
        cursor = await self._claims.execute(CLAIM, {"batch": self._batch, "worker": 1})
        rows: list[tuple[int, int, str, bytes]] = await cursor.fetchall()
        return rows

    async def _work(self, rows: list[tuple[int, int, str, bytes]]) -> None:
        """One batch to its end; a chain runs ahead, every step committed before the next one starts, or goes back."""
        held = {id: (rev, kind, state) for id, rev, kind, state in rows}
        while held:
            outcomes = []
            for id, (rev, kind, raw) in held.items():
                state = _decode(raw)
                await self._kinds[kind](state)
                more = kind == "chain" and state.step < STEPS
                outcomes.append(Outcome(id, rev, self._next if more else 2, state))
            cursor = await self._commits.execute(COMMIT, (_encode(outcomes).decode(),))
            revs = dict(await cursor.fetchall())
            held = {o.id: (revs[o.id], "chain", _encode(o.state)) for o in outcomes if o.status == 1 and o.id in revs}

    async def _noop(self, state: State) -> None:
        self._board.hit()

    async def _step(self, state: State) -> None:
        state.step += 1
        self._board.hit()


class Adapter:
    loop = "uvloop"

    def __init__(self, url: str, board: Board, options: dict[str, Any]) -> None:
        self._url, self._board, self._options = url, board, options

    async def setup(self) -> None:
        async with await connect(self._url) as connection:
            await connection.execute(TABLE, prepare=False)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Inserter]:
        async with await connect(self._url) as connection:
            yield Inserter(connection)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Inserter]:
        async with (
            await connect(self._url) as claims,
            await connect(self._url) as commits,
            self.client() as client,
        ):
            task = asyncio.create_task(Loop(claims, commits, self._board, self._options).run())
            try:
                yield client
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
