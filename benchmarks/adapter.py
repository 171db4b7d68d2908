"""What an engine must offer to be measured.

``kind`` is one of

* ``noop``: a job that does nothing but count itself;
* ``chain``: five durable steps, one after the other (a machine of five steps where the engine has machines,
  five steps of one workflow, or five jobs of which each inserts the next); it carries ``FILLER``;
* ``mark``: a job that stamps the board with the time at which it started, under its number.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Protocol

from benchmarks.board import Board

STEPS = 5
FILLER = "gen_durable " * 16
"""State that each chain carries: 192 bytes, about what a small business object has."""


class Client(Protocol):
    async def one(self, kind: str, number: int) -> None:
        """Insert one, durable on return."""

    async def many(self, kind: str, count: int) -> None:
        """Insert ``count`` numbered from 0 in one call, by the fastest documented way."""


class Adapter(Protocol):
    loop: ClassVar[str]
    """``uvloop`` or ``asyncio``: the event loop on which the engine is fastest."""

    def __init__(self, url: str, board: Board, options: dict[str, Any]) -> None: ...

    async def setup(self) -> None:
        """Create the schema in an empty database."""

    def client(self) -> AbstractAsyncContextManager[Client]:
        """A process that only inserts."""

    def worker(self) -> AbstractAsyncContextManager[Client]:
        """A running worker; the client that comes with it inserts from the same process."""
