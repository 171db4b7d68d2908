"""psycopg2's connections."""

from __future__ import annotations

import sys
from typing import Any

from gen_durable._store.lending.lent import Lent, rows_of
from gen_durable._store.operation import Request, Row
from gen_durable._store.rendering import named, pyformat

__all__ = ["LentPsycopg2"]

_IDLE = 0  # psycopg2.extensions.TRANSACTION_STATUS_IDLE


class LentPsycopg2(Lent):
    """A ``psycopg2.extensions.connection``."""

    blocking = True

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def ready(self) -> object:
        """It is."""
        return self._connection

    @property
    def in_transaction(self) -> bool:
        """Unless it is in autocommit mode and idle: otherwise a statement begins one."""
        return not self._connection.autocommit or self._connection.get_transaction_status() != _IDLE

    async def fetch(self, request: Request) -> list[Row]:
        """Runs one statement."""
        # Its user's cursor class may give rows as dicts; the driver's own gives tuples.
        with self._connection.cursor(cursor_factory=sys.modules["psycopg2.extensions"].cursor) as cursor:
            cursor.execute(pyformat(request.statement.text), named(request.parameters))
            return rows_of(cursor.fetchall()) if cursor.description else []
