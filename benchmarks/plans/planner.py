"""A session that shows how it runs the engine's statements."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from psycopg import AsyncConnection

from benchmarks.plans.calls import Call
from gen_durable._store.connection import set_up
from gen_durable._store.operation import Catalog


class Planner:
    """A session with every statement prepared, as the engine's are: one generic plan for all parameters."""

    def __init__(self, catalog: Catalog, connection: AsyncConnection[Any]) -> None:
        self.catalog = catalog
        self.connection = connection

    @classmethod
    async def open(cls, catalog: Catalog, connection: AsyncConnection[Any], *, steady: bool | None) -> Planner:
        """On a worker's session (``steady``), on a client's, or (``None``) on one that nothing was set for."""
        if steady is not None:
            await set_up(connection, steady=steady)
        connection.prepare_threshold = None  # the driver forgets what it did not prepare itself at each ROLLBACK
        planner = cls(catalog, connection)
        for name, statement in catalog.items():
            if name not in ("queues/listen", "testing/advance"):  # that one needs a schema for tests
                await connection.execute(f'PREPARE "{name}" AS '.encode() + statement.text, prepare=False)
        return planner

    async def explain(self, call: Call, timeout: float = 5.0) -> dict[str, Any]:
        """The plan of one execution, whose effect is undone, with its times."""
        (row,) = await self._explain(call, "FORMAT JSON", timeout)
        explained = row[0] if isinstance(row[0], list) else json.loads(row[0])
        found: dict[str, Any] = explained[0]
        return found

    async def text(self, call: Call, timeout: float = 5.0) -> str:
        """The same as a person reads it."""
        return "\n".join(row[0] for row in await self._explain(call, "COSTS OFF", timeout))

    async def _explain(self, call: Call, option: str, timeout: float) -> list[tuple[Any, ...]]:
        given = [literal(call.values[name]) for name in self.catalog[call.statement].parameters]
        text = f'EXPLAIN (ANALYZE, BUFFERS, {option}) EXECUTE "{call.statement}"({", ".join(given)})'
        async with self.connection.transaction(force_rollback=True):
            await self.connection.execute(
                f"SET LOCAL statement_timeout = {round(1000 * timeout)}".encode(), prepare=False
            )
            cursor = await self.connection.execute(text.encode(), prepare=False)
            return await cursor.fetchall()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plan's nodes, from the top."""
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


def index_of(name: str) -> str:
    """An index by the name that the migration gives it; a partition's are named after their columns."""
    part = re.fullmatch(r"(finished|transitions)_\w+?_(instance_id|key_id|id|parent_id_parent_spawn_id)_idx", name)
    names = {
        "instance_id": "transitions_instance",
        "key_id": "finished_key",
        "id": "finished_id",
        "parent_id_parent_spawn_id": "finished_parent",
    }
    return names[part[2]] if part else name


def literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return "'{" + ",".join(str(item) for item in value) + "}'"
    return "'" + str(value).replace("'", "''") + "'"
