"""What an engine must offer to be measured.

``kind`` is one of

* ``noop``: a job that does nothing but count itself;
* ``chain``: five durable steps, one after the other (a machine of five steps where the engine has machines,
  five steps of one workflow, or five jobs of which each inserts the next); it carries ``FILLER``;
* ``mark``: a job that stamps the board with the time at which it started, under its number;
* ``call``: a job that waits for ``CALL_SECONDS``, as for somebody's answer;
* ``answer``: a job whose result is its number;
* ``sitter``: a job that counts itself and then waits until its worker ends;
* ``waiter``: a job that waits for a signal and then stamps the board, under its number;
* ``parked``: the same, told apart by nothing, and counted when it has begun;
* ``parent``: a job that spawns as many ``noop`` jobs as its number says, and ends when all of them have.
* ``keyed``, ``wide``, ``metered``: ``noop`` under one of 100 concurrency keys that let one run at a time; under one of
  100 that let 50; under a rate that is never reached;
* ``paid``, ``paid_alone``: a job that updates one row of 10,000, in the transaction of its outcome; on a connection of
  its own, and so in a transaction of its own;
* ``crowd``: a job that holds its concurrency key, the same for all of them, until its worker ends.

``noop``, ``chain`` and ``mark`` are every engine's; the others are for those that have such things: ``answer`` see
``Asking``, ``waiter`` ``Signals``, ``parent`` ``Families``.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Protocol

from benchmarks.board import Board

STEPS = 5
CALL_SECONDS = 0.04
FILLER = "gen_durable " * 16
"""State that each chain carries: 192 bytes, about what a small business object has."""


class Client(Protocol):
    async def one(self, kind: str, number: int) -> None:
        """Insert one, durable on return."""

    async def many(self, kind: str, count: int) -> None:
        """Insert ``count`` numbered from 0 in one call, by the fastest documented way."""


class Asking(Client, Protocol):
    """What the workload ``D.result`` asks for besides."""

    async def ask(self, number: int) -> int:
        """Insert an ``answer`` of that number, wait for its end, and return its result."""


class Signals(Client, Protocol):
    """What the workload ``E`` asks for besides."""

    async def signal(self, number: int) -> None:
        """Send the waiter of that number the signal that it waits for, durable on return."""

    async def parked(self) -> int:
        """How many waiters wait for their signal."""


class Families(Client, Protocol):
    """What the workload ``F`` asks for besides, of the client in the worker's process."""

    async def left(self) -> int:
        """How many jobs have not ended."""

    async def family(self, count: int) -> None:
        """Insert a parent of ``count`` children and wait for its end."""


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
