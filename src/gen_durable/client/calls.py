"""All calls together."""

from __future__ import annotations

from gen_durable.client.limiting import LimitingCalls
from gen_durable.client.scheduling import SchedulingCalls
from gen_durable.client.steering import SteeringCalls

__all__ = ["Client"]


class Client(SchedulingCalls, SteeringCalls, LimitingCalls):
    """The calls. An :class:`gen_durable.Engine` is one; it is open between ``async with``'s begin and end."""

    async def _open(self, url: str) -> None:
        """Connects, and makes sure of what the settings declare for the whole cluster."""
        self._use_clock(test=await self._session.open(url))
        await self._open_limits()
        for schedule in self._settings.schedules:
            await self._declare(schedule)
