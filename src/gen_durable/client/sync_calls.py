"""The calls for code that can't await: each runs the one of :class:`Client` to its end, and explains nothing anew."""

from __future__ import annotations

import builtins
from collections.abc import Coroutine, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gen_durable._times import CatchUp
from gen_durable.client.calls import Client
from gen_durable.client.handle import Handle, SyncHandle, SyncInserted
from gen_durable.client.inserting import BulkItem, Conflict
from gen_durable.limits import Rate
from gen_durable.machine import Machine
from gen_durable.outcome import KEEP, KeyOption, WeightOption

if TYPE_CHECKING:
    from gen_durable.client.sync import SyncClient

__all__ = ["SyncWritingCalls"]

T = TypeVar("T")


class SyncWritingCalls:
    """What writes."""

    @property
    def _calls(self) -> Client:
        raise NotImplementedError

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        raise NotImplementedError

    def _sync(self, handle: Handle) -> SyncHandle:
        return SyncHandle(handle.id, handle.key, handle.machine, cast("SyncClient", self))

    def insert(
        self,
        instance: Machine,
        *,
        key: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        on_conflict: Conflict = "raise",
        scope: Iterable[str] | None = None,
        concurrency_key: KeyOption = KEEP,
        rate_limit: KeyOption = KEEP,
        weight: WeightOption = KEEP,
        conn: Any = None,
    ) -> SyncHandle:
        """Inserts a machine or a bound job; see :meth:`Client.insert`."""
        return self._sync(
            self._run(
                self._calls.insert(
                    instance, key=key, queue=queue, priority=priority, delay=delay, at=at, on_conflict=on_conflict,
                    scope=scope, concurrency_key=concurrency_key, rate_limit=rate_limit, weight=weight, conn=conn,
                )
            )
        )  # fmt: skip

    def insert_many(self, items: Iterable[Machine | BulkItem], *, conn: Any = None) -> builtins.list[SyncInserted]:
        """Inserts any number; see :meth:`Client.insert_many`."""
        done = self._run(self._calls.insert_many(items, conn=conn))
        return [SyncInserted(self._sync(one.handle), one.duplicate) for one in done]

    def signal(
        self, target: int | str, name: str, payload: Any = None, *, dedup_key: str | None = None, conn: Any = None
    ) -> bool:
        """Puts a signal into an instance's inbox; see :meth:`Client.signal`."""
        return self._run(self._calls.signal(target, name, payload, dedup_key=dedup_key, conn=conn))

    def signal_or_insert(
        self,
        instance: Machine,
        *,
        key: str,
        name: str,
        payload: Any = None,
        dedup_key: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        concurrency_key: KeyOption = KEEP,
        rate_limit: KeyOption = KEEP,
        weight: WeightOption = KEEP,
        conn: Any = None,
    ) -> SyncHandle:
        """Delivers a signal to the live instance of a key, or inserts it; see :meth:`Client.signal_or_insert`."""
        return self._sync(
            self._run(
                self._calls.signal_or_insert(
                    instance, key=key, name=name, payload=payload, dedup_key=dedup_key, queue=queue, priority=priority,
                    delay=delay, at=at, concurrency_key=concurrency_key, rate_limit=rate_limit, weight=weight,
                    conn=conn,
                )
            )
        )  # fmt: skip

    def cancel(self, target: int | str, *, cascade: bool = False, reason: str = "cancelled", conn: Any = None) -> bool:
        """Ends an instance as ``cancelled``; see :meth:`Client.cancel`."""
        return self._run(self._calls.cancel(target, cascade=cascade, reason=reason, conn=conn))

    def retry(self, target: int | str, *, conn: Any = None) -> None:
        """Runs a failed or cancelled instance again; see :meth:`Client.retry`."""
        self._run(self._calls.retry(target, conn=conn))

    def pause_queue(self, queue: str, *, conn: Any = None) -> None:
        """Stops claims from a queue in the whole cluster; see :meth:`Client.pause_queue`."""
        self._run(self._calls.pause_queue(queue, conn=conn))

    def resume_queue(self, queue: str, *, conn: Any = None) -> None:
        """Lets a paused queue go on; see :meth:`Client.resume_queue`."""
        self._run(self._calls.resume_queue(queue, conn=conn))

    def set_limit(self, name: str, limit: int | Rate | None, *, queue: bool = False, conn: Any = None) -> bool:
        """Sets a limit for the whole cluster; see :meth:`Client.set_limit`."""
        return self._run(self._calls.set_limit(name, limit, queue=queue, conn=conn))

    def schedule(
        self,
        name: str,
        cron: str | None,
        instance: Machine,
        *,
        every: timedelta | float | None = None,
        tz: str = "UTC",
        catch_up: CatchUp = "last",
        queue: str | None = None,
        priority: int | None = None,
        time_field: str | None = None,
        paused: bool = False,
        conn: Any = None,
    ) -> None:
        """Makes or changes a schedule; see :meth:`Client.schedule`."""
        self._run(
            self._calls.schedule(
                name, cron, instance, every=every, tz=tz, catch_up=catch_up, queue=queue, priority=priority,
                time_field=time_field, paused=paused, conn=conn,
            )
        )  # fmt: skip

    def unschedule(self, name: str, *, conn: Any = None) -> bool:
        """Removes a schedule; see :meth:`Client.unschedule`."""
        return self._run(self._calls.unschedule(name, conn=conn))

    def pause_schedule(self, name: str, *, conn: Any = None) -> None:
        """Stops a schedule until it is resumed; see :meth:`Client.pause_schedule`."""
        self._run(self._calls.pause_schedule(name, conn=conn))

    def resume_schedule(self, name: str, *, conn: Any = None) -> None:
        """Lets a paused schedule go on; see :meth:`Client.resume_schedule`."""
        self._run(self._calls.resume_schedule(name, conn=conn))

    def trigger_schedule(self, name: str, *, conn: Any = None) -> SyncHandle:
        """Starts an instance now, besides the schedule's times; see :meth:`Client.trigger_schedule`."""
        return self._sync(self._run(self._calls.trigger_schedule(name, conn=conn)))

    def backfill_schedule(self, name: str, since: datetime, until: datetime, *, priority: int | None = None) -> int:
        """Starts the occurrences of a past span that were not started yet; see :meth:`Client.backfill_schedule`."""
        return self._run(self._calls.backfill_schedule(name, since, until, priority=priority))
