"""What steps need of the database besides their claim and their commit: the children, the lanes of other queues."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg

from gen_durable._runtime.held import Held
from gen_durable._store.inserting import NewInstance
from gen_durable.context import ChildResult
from gen_durable.errors import DatabaseUnreachable
from gen_durable.machine import MachineSpec
from gen_durable.outcome import Child

__all__ = ["Needs"]

T = TypeVar("T")

log = logging.getLogger("gen_durable")

AGAIN_SECONDS = 0.5


class Needs:
    """Asks for one worker, through the client of its process, until there is an answer.

    The database's trouble is not the fault of the step, which waits.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self.queue_of_lane: dict[int, str] = {}  # of the rows that move to another queue

    async def lane_of(self, spec: MachineSpec, queue: str) -> int:
        """The lane of a machine in another queue."""
        lane: int = await _patiently(lambda: self._client._lane(spec, queue))
        self.queue_of_lane[lane] = queue
        return lane

    async def children_of(self, held: Held) -> list[ChildResult]:
        """The children that a row has waited for; those that are left are cancelled first, where it said so."""
        assert held.waits is not None
        spawn = held.waits.spawn
        assert spawn is not None
        if held.waits.rest:
            await _patiently(lambda: self._client._cancel_children(held.id, spawn))
        return await _patiently(lambda: self._client._children(held.id, spawn))

    async def prepare(self, children: tuple[Child, ...]) -> list[NewInstance]:
        """The rows of children to be, checked.

        Raises:
            InvalidArgument: one of them can't be inserted.
        """
        return await _patiently(lambda: self._client._prepare(children))


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await ask()
        except DatabaseUnreachable:
            await asyncio.sleep(AGAIN_SECONDS)
        except psycopg.OperationalError as error:  # a lock that is not to be had, a server that is full
            log.warning("%s; trying again", str(error).strip())
            await asyncio.sleep(AGAIN_SECONDS)
