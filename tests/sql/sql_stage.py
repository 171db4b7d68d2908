"""A stage for tests that step single statements by hand: one schema, plain connections, and a few shorthands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
from psycopg import AsyncConnection
from psycopg.pq import ExecStatus

from gen_durable._store.connection import fetch
from gen_durable._store.operation import Row, catalog, channel_of, render, tokens

PATIENCE = 10.0

Connection = AsyncConnection[Row]


def encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def outcome(id_: int, rev: int, op: int, **fields: Any) -> dict[str, Any]:
    """One element of a commit's list, as the worker sends it.

    op 0 goes on, 1 goes back, 2 ends, 3 waits for a signal, 4 for its children.
    """
    basic: dict[str, Any] = {"id": id_, "rev": rev, "op": op, "kind": 0, "ran": "one", "tried": 0, "took": 0.25}
    basic["history"] = 1
    if op == 1:
        basic |= {"step": "one", "attempt": 0, "crashes": 0, "delay": 0.0}
    elif op == 2:
        basic |= {"keep": 86400.0, "kind": 3}
    elif op == 3:
        basic |= {"step": "two", "attempt": 0, "crashes": 0, "awaits": ["go"], "kind": 7}
    elif op == 4:
        basic |= {"step": "two", "attempt": 0, "crashes": 0, "children": 1, "kind": 8}
    else:
        basic |= {"step": "two"}
    return basic | fields


class Admitted(NamedTuple):
    """What a look at lines brought: claims, runnable rows by queue, each line's state, when to look again."""

    claims: list[Row]
    queues: dict[str, int]
    lines: dict[str, tuple[int, int | None, float, float | None]]
    wake: float | None


class Stage:
    """The statements of one schema, run one at a time on connections of the test's choice."""

    def __init__(self, schema: str, connect: Callable[[], Awaitable[Connection]], main: Connection) -> None:
        self.schema = schema
        self.sql = catalog(schema)
        self.lockspace = int(tokens(schema)["{lockspace}"])
        self.connect = connect
        self.main = main
        self._workers: set[int] = set()
        self.seconds: float | None = None  # on the clock of looks at limits, where a test sets it

    async def run(self, statement: str, /, *, on: Connection | None = None, **values: Any) -> list[Row]:
        """Runs a statement of the store."""
        return await fetch(on or self.main, self.sql[statement].bind(**values))

    async def ask(self, text: str, *values: Any, on: Connection | None = None) -> list[Row]:
        """Runs SQL of the test's own; {schema} and {clock} stand for what they stand for in the store."""
        cursor = await (on or self.main).execute(render(text, self.schema).encode(), values or None, prepare=False)
        if cursor.pgresult is None or cursor.pgresult.status != ExecStatus.TUPLES_OK:
            return []
        return await cursor.fetchall()

    async def value(self, text: str, *values: Any, on: Connection | None = None) -> Any:
        rows = await self.ask(text, *values, on=on)
        return rows[0][0] if rows else None

    # What the engine does, in one line each -------------------------------------------------------

    async def lane(
        self, queue: str = "q", machine: str = "m", version: int = 1, retention: float | None = 86400.0
    ) -> int:
        listed = [{"queue": queue, "machine": machine, "version": version, "retention": retention}]
        rows = await self.run("queues/lanes", lanes=encode(listed))
        return next(row[3] for row in rows)

    async def insert(
        self,
        *rows: dict[str, Any],
        notify: bool = False,
        soon: float = 5.0,
        worker: int | None = None,
        on: Connection | None = None,
    ) -> list[int | None]:
        """Inserts rows; their ids in the order given, None for a duplicate."""
        listed = [{"step": "one", "state": {}} | row for row in rows]
        answer = await self.run("inserting/insert", on=on, rows=encode(listed), notify=notify, soon=soon, worker=worker)
        places = {row[0]: row[1] for row in answer}
        return [places[place] for place in range(1, len(rows) + 1)]

    async def claim(
        self, *wants: tuple[int, int, int], worker: int = 7, counted: bool = False, on: Connection | None = None
    ) -> list[Row]:
        """Claims, for a worker that is registered if the test has not done it; a want is (lane, pool, room)."""
        if worker not in self._workers:
            await self.register(worker)
        pools = [pool for _, pool, _ in wants]
        listed = [
            {"lane": lane, "pool": pool, "room": room, "solo": pools.count(pool) == 1, "counted": counted}
            for lane, pool, room in wants
        ]
        return await self.run("claiming/claim", on=on, worker=worker, wants=encode(listed))

    async def held(self, worker: int = 7, **row: Any) -> tuple[int, int, int]:
        """A claimed row: its id, its rev, its lane."""
        lane = await self.lane()
        await self.insert({"lane": lane} | row)
        ((id_, rev, *_),) = await self.claim((lane, 0, 1), worker=worker)
        return id_, rev, lane

    async def commit(
        self,
        *outcomes: dict[str, Any],
        worker: int = 7,
        wake: list[str] | None = None,
        first: list[int] | None = None,
        general: bool = False,
        on: Connection | None = None,
    ) -> list[int]:
        """The ids that were committed; each came with its next rev. What waits is locked first, as the worker asks.

        Outcomes that only end go by the statement for these, as the worker has it, unless ``general``.
        """
        waits = [given["id"] for given in outcomes if given["op"] > 2]
        terms = {
            "worker": worker, "outcomes": encode(list(outcomes)), "first": encode(sorted({*waits, *(first or ())})),
        }  # fmt: skip
        plain = all(given["op"] == 2 and given["history"] < 2 and "mark" not in given for given in outcomes)
        if (
            plain
            and not general
            and wake is None
            and not any(given["kind"] == 3 and "error" in given for given in outcomes)
        ):
            rows = await self.run("committing/end_joined", on=on, **terms)
        else:
            rows = await self.run("committing/commit", on=on, wake=wake or [], **terms)
        revs = {given["id"]: given["rev"] for given in outcomes}
        done = [row for row in rows if row[1] >= 0]
        assert all(rev == revs[id_] + 1 for id_, rev, _ in done)
        return sorted(id_ for id_, _, _ in done)

    async def send(
        self,
        target: int | str,
        name: str = "go",
        payload: Any = None,
        *,
        dedup: str | None = None,
        notify: bool = False,
        on: Connection | None = None,
    ) -> tuple[bool, bool] | None:
        """Sends a signal: whether it is new and whether it woke its instance; None: there is none."""
        row = await self._send(target, name, payload, dedup, notify, on)
        return (row[2], row[3]) if row else None

    async def send_for(
        self,
        worker: int,
        target: int | str,
        name: str = "go",
        payload: Any = None,
        *,
        lanes: list[int] | None = None,
        dedup: str | None = None,
        on: Connection | None = None,
    ) -> Row | None:
        """Sends a signal from the process of a worker that keeps places; the row, as a claim gives it, or None."""
        known = list(range(100)) if lanes is None else lanes
        row = await self._send(target, name, payload, dedup, False, on, worker, known)
        assert row is not None
        return row[6:] if row[6] is not None else None

    async def _send(
        self,
        target: int | str,
        name: str,
        payload: Any,
        dedup: str | None,
        notify: bool,
        on: Connection | None,
        worker: int | None = None,
        lanes: list[int] | None = None,
    ) -> Row | None:
        rows = await self.run(
            "signalling/send",
            on=on,
            id=target if isinstance(target, int) else None,
            key=target if isinstance(target, str) else None,
            name=name,
            payload=None if payload is None else encode(payload),
            dedup=dedup,
            notify=notify,
            worker=worker,
            lanes=lanes,
        )
        return rows[0] if rows else None

    async def cancel(self, *ids: int, on: Connection | None = None) -> list[int]:
        """The ids that were cancelled."""
        rows = await self.run(
            "steering/cancel", on=on, ids=encode(sorted(ids)), reason=encode({"type": "Cancelled"}), keep=True
        )
        return sorted(row[0] for row in rows if row[2] is not None)

    async def admit(
        self,
        *lines: str,
        most: int = 1000,
        worker: int | None = None,
        places: list[tuple[int, int, int]] | None = None,
        on: Connection | None = None,
    ) -> Admitted:
        """Looks at some lines, without any at those that were knocked at; a place is (lane, pool, room)."""
        pools = [{"lane": lane, "pool": pool, "room": room} for lane, pool, room in places or ()]
        if self.seconds is None:
            rows = await self.run(
                "limiting/admit",
                on=on,
                given=list(lines) or None,
                most=most,
                worker=worker,
                pools=encode(pools),
                report=True,
            )
        else:
            rows = await self.ask(
                "SELECT * FROM {schema}.admit("
                "'2030-01-01Z'::timestamptz + make_interval(secs => %s), %s, %s, %s, %s::jsonb, true)",
                self.seconds, list(lines) or None, most, worker, encode(pools), on=on,
            )  # fmt: skip
        return Admitted(
            claims=[row[6:] for row in rows if row[0] == "claim"],
            queues={row[1]: row[2] for row in rows if row[0] == "queue"},
            lines={row[1]: (row[2], row[3], row[4], row[5]) for row in rows if row[0] == "line"},
            wake=min((row[5] for row in rows if row[0] == "wake"), default=None),
        )

    async def history(self, id_: int) -> list[Row]:
        """An instance's transitions: seq, outcome, step, attempt, took, worker, error, state."""
        rows = await self.run("reading/history", id=id_)
        return [(r[0], r[3], r[1], r[2], r[4], r[6], r[7], r[8]) for r in rows]

    async def release(self, *claims: tuple[int, int], worker: int = 7, on: Connection | None = None) -> int:
        listed = encode([{"id": id_, "rev": rev} for id_, rev in claims])
        rows = await self.run("claiming/release", on=on, worker=worker, claims=listed)
        count: int = rows[0][0]
        return count

    async def register(
        self, worker: int = 7, *, lock: bool = False, seen: float = 0.0, on: Connection | None = None
    ) -> None:
        """Registers a worker that was last seen so many seconds ago."""
        self._workers.add(worker)
        await self.run(
            "workers/register",
            on=on,
            worker=worker,
            name=f"w{worker}",
            host="here",
            pid=1,
            queues="{}",
            lanes=[],
            lock=lock,
        )
        await self.ask(
            "UPDATE {schema}.workers SET seen_at = {clock} - make_interval(secs => %s) WHERE id = %s", seen, worker
        )

    async def reap(
        self,
        *,
        lease: float = 15.0,
        grace: float = 0.8,
        batch: int = 1000,
        keep: bool = True,
        worker: int = 0,
        heard: bool = True,
        watched: bool = True,
        on: Connection | None = None,
    ) -> tuple[int, list[int]]:
        """How many claims came back, and which workers were found dead."""
        rows = await self.run(
            "workers/reap",
            on=on,
            worker=worker,
            heard=heard,
            watched=watched,
            lease=lease,
            grace=grace,
            batch=batch,
            keep=keep,
        )
        dead = [worker for worker, _ in msgspec.json.decode(rows[0][1])]
        return rows[0][0], sorted(dead)

    async def row(self, id_: int, columns: str = "status, worker, rev, attempt, crashes, step, state") -> Row | None:
        """A live row's columns."""
        rows = await self.ask(f"SELECT {columns} FROM {{schema}}.instances WHERE id = %s", id_)
        return rows[0] if rows else None

    # Watching -------------------------------------------------------------------------------------

    async def until_waiting(self, task: asyncio.Task[Any], connection: Connection) -> None:
        """Until the server says that what the connection runs waits for somebody's lock."""
        until = time.monotonic() + PATIENCE
        pid = connection.info.backend_pid
        while True:
            rows = await self.ask("SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s", pid)
            if rows and rows[0][0] == "Lock":
                return
            assert not task.done(), f"it was to wait for a lock, but came to its end: {task}"
            assert time.monotonic() < until, f"it was to wait for a lock; it waits for {rows}"

    async def heard(self, ear: Connection) -> list[str]:
        """What a listening connection has heard up to now, each message once for each transaction that sent it."""
        await self.ask(f"SELECT pg_notify('{channel_of(self.schema)}', 'end')")
        messages: list[str] = []
        async for notice in ear.notifies(timeout=PATIENCE):
            if notice.payload == "end":
                return messages
            messages.append(notice.payload)
        raise AssertionError("the end of the notifications did not come")
