"""asyncpg's connections, also those that its pool has given out."""

from __future__ import annotations

from typing import Any

from gen_durable._store.lending.lent import Lent, rows_of
from gen_durable._store.operation import Request, Row
from gen_durable._store.rendering import numbered

__all__ = ["LentAsyncpg"]


class LentAsyncpg(Lent):
    """An ``asyncpg.Connection`` or a pool's proxy of one."""

    blocking = False

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def ready(self) -> object:
        """It is; a pool's proxy is made anew at each acquire, for one connection."""
        return getattr(self._connection, "_con", None) or self._connection

    @property
    def in_transaction(self) -> bool:
        """Its ``transaction()``, or a BEGIN by hand."""
        return bool(self._connection.is_in_transaction())

    async def fetch(self, request: Request) -> list[Row]:
        """Runs one statement."""
        return rows_of(await self._connection.fetch(numbered(request.statement.text), *request.parameters))
