"""Django's connections, through its own cursors, which know whether the transaction is broken."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from gen_durable._store.lending.lent import Lent
from gen_durable._store.operation import Request, Row
from gen_durable._store.rendering import named, pyformat
from gen_durable.errors import InvalidArgument

__all__ = ["LentDjango"]


class LentDjango(Lent):
    """A ``DatabaseWrapper``, or the proxy ``django.db.connection``."""

    blocking = True

    def __init__(self, connection: Any) -> None:
        if connection.vendor != "postgresql":
            raise InvalidArgument(
                f"conn= is Django's connection {connection.alias!r} to {connection.vendor}: "
                "it must be one to the engine's Postgres"
            )
        self._connection = connection

    async def ready(self) -> object:
        """Connects, if it has not."""
        self._connection.ensure_connection()
        return self._connection.connection

    @property
    def in_transaction(self) -> bool:
        """In ``atomic()``, or with ``set_autocommit(False)``."""
        return not self._connection.get_autocommit()

    async def fetch(self, request: Request) -> list[Row]:
        """Runs one statement."""
        with self._connection.cursor() as cursor:
            cursor.execute(pyformat(request.statement.text), named(request.parameters))
            return [self._row(row) for row in cursor.fetchall()] if cursor.description else []

    def _row(self, row: Any) -> Row:
        return tuple(self._aware(value) if isinstance(value, datetime) else value for value in row)

    def _aware(self, moment: datetime) -> datetime:
        """Without USE_TZ times come without a zone: they are in the session's."""
        if moment.tzinfo is not None:
            return moment
        return moment.replace(tzinfo=ZoneInfo(self._connection.timezone_name))
