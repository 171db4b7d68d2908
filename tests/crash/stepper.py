"""The engine's own statements, one at a time, by hand: to put any order of events on a table."""

from __future__ import annotations

import json
from typing import Any

from psycopg import AsyncConnection

from gen_durable._store.connection import fetch
from gen_durable._store.operation import Row, catalog


class Stepper:
    """One session; ``worker`` is whoever it claims to be."""

    def __init__(self, connection: AsyncConnection[Row], schema: str) -> None:
        self.connection = connection
        self.schema = schema
        self.sql = catalog(schema)

    async def ask(self, name: str, /, **parameters: Any) -> list[Row]:
        return await fetch(self.connection, self.sql[name].bind(**parameters))

    async def query(self, text: str, *parameters: Any) -> list[Row]:
        text = text.replace("{schema}", self.schema)
        cursor = await self.connection.execute(text.encode(), parameters, prepare=False)
        return [] if cursor.description is None else await cursor.fetchall()

    async def register(self, worker: int, *, lock: bool = False) -> None:
        rows = await self.ask(
            "workers/register",
            worker=worker, name=f"s{worker}", host="here", pid=0, queues="{}", lanes=[], lock=lock,
        )  # fmt: skip
        assert rows
        await self.silence(worker, -3600)

    async def beat(self, worker: int, *, locked: bool = False) -> bool:
        return bool(await self.ask("workers/heartbeat", worker=worker, locked=locked, lanes=[]))

    async def claim(self, worker: int, room: int = 100) -> dict[int, int]:
        """The revs of the claimed rows, by id."""
        lanes = await self.query("SELECT id FROM {schema}.lanes")
        wants = [{"lane": lane, "pool": 0, "room": room, "solo": len(lanes) == 1} for (lane,) in lanes]
        rows = await self.ask("claiming/claim", worker=worker, wants=json.dumps(wants))
        return {row[0]: row[1] for row in rows}

    async def commit(self, worker: int, *outcomes: dict[str, Any]) -> set[tuple[int, ...]]:
        """What the answer says was committed."""
        rows = await self.ask(
            "committing/commit",
            worker=worker,
            outcomes=json.dumps(sorted(outcomes, key=lambda o: o["id"])),
            first="[]",
            wake=[],
        )
        return {(row[0], row[1]) for row in rows}

    async def release(self, worker: int, *claims: tuple[int, int]) -> int:
        listed = json.dumps([{"id": id_, "rev": rev} for id_, rev in sorted(claims)])
        return int((await self.ask("claiming/release", worker=worker, claims=listed))[0][0])

    async def reap(self, *, lease: float = 0.003, grace: float = 0.0) -> int:
        """A pass with so short a lease that the server counts as long started; who registered here is never silent."""
        return int(
            (
                await self.ask(
                    "workers/reap", worker=0, heard=True, watched=True, lease=lease, grace=grace, batch=1000, keep=True
                )
            )[0][0]
        )

    async def silence(self, worker: int, seconds: float) -> None:
        """Makes a worker's last sign of life that old."""
        await self.query(
            "UPDATE {schema}.workers SET seen_at = statement_timestamp() - make_interval(secs => %s) WHERE id = %s",
            seconds, worker,
        )  # fmt: skip

    async def row(self, instance: int) -> dict[str, Any]:
        """A live instance's columns."""
        columns = "status, rev, worker, attempt, crashes, step, state::text"
        rows = await self.query("SELECT " + columns + " FROM {schema}.instances WHERE id = %s", instance)
        if not rows:
            return {}
        return dict(zip(("status", "rev", "worker", "attempt", "crashes", "step", "state"), rows[0], strict=True))


def going_on(id_: int, rev: int, step: str = "count", **fields: Any) -> dict[str, Any]:
    return {"id": id_, "rev": rev, "op": 0, "step": step, "kind": 0, "ran": "count", "tried": 0, "history": 1, **fields}


def going_back(id_: int, rev: int, step: str = "count", **fields: Any) -> dict[str, Any]:
    return {"id": id_, "rev": rev, "op": 1, "step": step, "attempt": 1, "crashes": 0, "delay": 0, "kind": 1,
            "ran": "count", "tried": 0, "history": 1, **fields}  # fmt: skip


def ending(id_: int, rev: int, **fields: Any) -> dict[str, Any]:
    return {"id": id_, "rev": rev, "op": 2, "keep": 60.0, "took": 0.1, "kind": 3, "ran": "count", "tried": 0,
            "history": 1, **fields}  # fmt: skip
