"""Looking at instances, queues and workers."""

from __future__ import annotations

import builtins
from collections.abc import Sequence

from gen_durable._checks import check_name
from gen_durable._store import reading
from gen_durable.client.base import Base, check_target
from gen_durable.errors import InvalidArgument, NoSuchInstance
from gen_durable.snapshot import Page, QueueCount, QueueInfo, Snapshot, Transition, WorkerInfo
from gen_durable.status import Status

__all__ = ["ReadingCalls"]


class ReadingCalls(Base):
    """``get``, ``list``, ``history``, ``counts``, ``queues`` and ``workers``."""

    async def get(self, target: int | str) -> Snapshot:
        """An instance, by id or by key (the live one of that key, else the one that ended last).

        Raises:
            NoSuchInstance: there is none, or its retention has passed.
        """
        found: Snapshot | None = await self._session.call(reading.find(self._sql, check_target(target)))
        if found is None:
            raise NoSuchInstance(target)
        return found

    async def list(
        self,
        *,
        machine: str | None = None,
        status: str | Sequence[str] | None = None,
        queue: str | None = None,
        key_prefix: str | None = None,
        limit: int = 50,
        after: int | None = None,
    ) -> Page:
        """Instances, newest first, a page at a time.

        Args:
            machine, queue: only of these.
            status: one status or several.
            key_prefix: only those whose key begins so.
            limit: how many at most, 1 to 1000.
            after: the ``next`` of the page before.

        Raises:
            InvalidArgument: an argument is wrong.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= 1000:
            raise InvalidArgument(f"limit={limit!r}: use a whole number from 1 to 1000")
        if isinstance(after, bool) or not (after is None or (isinstance(after, int) and abs(after) < 2**63)):
            raise InvalidArgument(f"after={after!r}: give the `next` of the page before")
        for name, given in (("machine", machine), ("queue", queue), ("key_prefix", key_prefix)):
            if given:
                check_name(given, name)
        statuses = None
        if status is not None:
            labels = list(status) if isinstance(status, list | tuple | set | frozenset) else [status]
            for label in labels:
                if all(label != known.label for known in Status):
                    names = ", ".join(dict.fromkeys(s.label for s in Status))
                    raise InvalidArgument(f"there is no status {label!r}; the statuses are {names}")
            statuses = [int(known) for known in Status if known.label in labels]
        page: Page = await self._session.call(
            reading.page(
                self._sql,
                machine=machine,
                queue=queue,
                key_prefix=key_prefix,
                statuses=statuses,
                before=after,
                limit=limit,
            )
        )
        return page

    async def history(self, target: int | str) -> builtins.list[Transition]:
        """The transitions of an instance, oldest first.

        Raises:
            NoSuchInstance: there is none.
        """
        found = await self.get(target)
        listed: builtins.list[Transition] = await self._session.call(reading.history(self._sql, found.id))
        return listed

    async def counts(self) -> builtins.list[QueueCount]:
        """How many instances there are, by queue, machine and status. It reads everything: not for every second."""
        counted: builtins.list[QueueCount] = await self._session.call(reading.counts(self._sql))
        return counted

    async def queues(self) -> builtins.list[QueueInfo]:
        """The queues that somebody has used, and which of them are paused."""
        rows = await self._session.fetch(self._sql["queues/names"].bind())
        return [QueueInfo(name=name, paused=paused) for name, paused in rows]

    async def workers(self) -> builtins.list[WorkerInfo]:
        """The worker processes that are registered."""
        listed: builtins.list[WorkerInfo] = await self._session.call(reading.workers(self._sql))
        return listed
