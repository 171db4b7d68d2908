"""What a call needs of a connection that its caller lends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from gen_durable._store.operation import Request, Row

__all__ = ["Lent", "rows_of"]


class Lent(ABC):
    """A connection, for the time of one call. Its coroutines never suspend where it is ``blocking``."""

    blocking: ClassVar[bool]

    @abstractmethod
    async def ready(self) -> object:
        """Sees to it that there is a connection, and answers with the driver's: one object as long as it lasts.

        It may begin the transaction that the caller's library begins by itself.
        """

    @property
    @abstractmethod
    def in_transaction(self) -> bool:
        """Whether what runs now belongs to a transaction that goes on after the call; ask when it is ready."""

    @abstractmethod
    async def fetch(self, request: Request) -> list[Row]:
        """Runs one statement; json may come as its driver's user has it: no statement of ours answers with any."""


def rows_of(found: Sequence[Any]) -> list[Row]:
    """A driver's rows as plain tuples."""
    return [tuple(row) for row in found]
