"""Steering queues."""

from __future__ import annotations

from gen_durable._store import reading
from gen_durable.client.base import Base
from gen_durable.outcome import check_name

__all__ = ["SteeringCalls"]


class SteeringCalls(Base):
    """``pause_queue`` and ``resume_queue``."""

    async def pause_queue(self, queue: str) -> None:
        """Stops claims from a queue in the whole cluster; steps that run go on to their end.

        Raises:
            InvalidArgument: there is no such queue.
        """
        await self._set_paused(queue, True)

    async def resume_queue(self, queue: str) -> None:
        """Lets a paused queue go on.

        Raises:
            InvalidArgument: there is no such queue.
        """
        await self._set_paused(queue, False)

    async def _set_paused(self, queue: str, paused: bool) -> None:
        await self._check_queues({check_name(queue, "queue")})
        await self._session.call(reading.set_paused(self._sql, queue, paused))
