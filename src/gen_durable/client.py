"""Every call on instances: insert, read, wait, steer."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias

import msgspec

from gen_durable._bell import Bell
from gen_durable._session import Session
from gen_durable._store import reading
from gen_durable._store.inserting import LaneKey, NewInstance, ensure_lanes, insert_all
from gen_durable._store.operation import catalog
from gen_durable.config import LONGEST_POLL, Settings
from gen_durable.errors import (
    ConfigurationError,
    DatabaseUnreachable,
    DuplicateInstance,
    InstanceCancelled,
    InstanceFailed,
    InvalidArgument,
    InvalidState,
    NoSuchInstance,
    StillRunning,
)
from gen_durable.machine import Machine, MachineSpec, spec_of
from gen_durable.outcome import check_name, check_priority, check_seconds
from gen_durable.snapshot import Page, QueueCount, QueueInfo, Snapshot, Transition, WorkerInfo
from gen_durable.status import Status

__all__ = ["BulkItem", "Client", "Handle", "Inserted"]

Conflict: TypeAlias = Literal["raise", "existing"]

FIRST_LOOK, LONGEST_LOOK = 0.02, 0.5
AWAY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class BulkItem:
    """One instance of an ``insert_many``, with options of its own; they mean what they mean in ``insert``."""

    instance: Machine
    key: str | None = None
    queue: str | None = None
    priority: int | None = None
    delay: float | timedelta | None = None
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Handle:
    """An inserted instance.

    Attributes:
        id: its number.
        key: its business identity, or None.
        machine: the machine's name.
    """

    id: int
    key: str | None
    machine: str
    _client: Client

    async def get(self) -> Snapshot:
        """The instance as it is now; see :meth:`Client.get`."""
        return await self._client.get(self.id)

    async def result(self, timeout: float | None = None) -> Any:
        """Waits for its end; see :meth:`Client.result`."""
        return await self._client.result(self.id, timeout)

    def __repr__(self) -> str:
        return f"Handle(id={self.id}, key={self.key!r}, machine={self.machine!r})"


@dataclass(frozen=True, slots=True)
class Inserted:
    """What became of one item of ``insert_many``.

    Attributes:
        handle: the new instance, or the one that holds the key.
        duplicate: whether the key was taken, so that nothing was inserted.
    """

    handle: Handle
    duplicate: bool

    @property
    def id(self) -> int:
        """The handle's id."""
        return self.handle.id


class _LocalWorker:
    """What the client needs of the worker in the same process; see ``_runtime.worker``."""

    def takes(self, queue: str, count: int) -> bool:
        """Whether it would start so many rows of the queue at once."""
        raise NotImplementedError

    def inserted(self, queues: set[str], soonest: float | None) -> None:
        """Rows were inserted."""
        raise NotImplementedError

    def lanes_changed(self) -> None:
        """There are new lanes."""
        raise NotImplementedError


class Client:
    """The calls. An :class:`gen_durable.Engine` is one; it is open between ``async with``'s begin and end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sql = catalog(settings.schema)
        self._session = Session(settings)
        self._bell = Bell(self._session, self._sql)
        self._lanes: dict[LaneKey, int] = {}
        self._known_queues: set[str] = {*settings.queues, *(spec.queue for spec in settings.machines)}
        self._waiters: dict[int, set[asyncio.Event]] = {}
        self._local: Any = None  # the worker in this process

    async def _close(self) -> None:
        await self._bell.close()
        await self._session.close()
        for events in self._waiters.values():
            for event in events:
                event.set()

    # Inserting ------------------------------------------------------------------------------------

    async def insert(
        self,
        instance: Machine,
        *,
        key: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        on_conflict: Conflict = "raise",
    ) -> Handle:
        """Inserts a machine or a bound job; it is there, durably, when this returns.

        Args:
            instance: ``Checkout(order=42)`` or ``send_welcome.bind(user_id=7)``.
            key: its business identity, at most 512 bytes: at most one live instance has it.
            queue: another queue than its machine's.
            priority: −32768 to 32767, lower first; by default its machine's.
            delay: seconds (or a timedelta) until it is due, by the database's clock.
            at: when it is due: an aware datetime. Give one of ``delay`` and ``at``.
            on_conflict: what to do when the key is taken: ``"raise"``, or give the ``"existing"`` one's handle.

        Raises:
            DuplicateInstance: the key is taken (and ``on_conflict`` is ``"raise"``).
            InvalidState: the state can't be stored.
            InvalidArgument: another argument is wrong; nothing was written.
            DatabaseUnreachable: no connection, or it broke.
        """
        if on_conflict not in ("raise", "existing"):
            raise InvalidArgument(f'on_conflict={on_conflict!r}: use "raise" or "existing"')
        item = BulkItem(instance, key, queue, priority, delay, at)
        (inserted,) = await self.insert_many([item])
        if inserted.duplicate and on_conflict == "raise":
            assert key is not None
            raise DuplicateInstance(key, inserted.id)
        return inserted.handle

    async def insert_many(self, items: Iterable[Machine | BulkItem]) -> builtins.list[Inserted]:
        """Inserts any number, a few thousand in each round trip; answers for each, in the order given.

        All items are checked before the first is written. Each round trip is a transaction of its own. An item whose
        key is taken, also by an earlier item, is reported as a duplicate.

        Raises:
            InvalidState, InvalidArgument: an item is wrong; nothing was written.
            DatabaseUnreachable: no connection, or it broke.
        """
        checked = [self._check(item if isinstance(item, BulkItem) else BulkItem(item)) for item in items]
        if not checked:
            return []
        lanes = await self._lanes_for({lane: spec for spec, lane, _ in checked})
        for _, lane, row in checked:
            row.lane = lanes[lane]
        queues = {lane.queue for _, lane, row in checked if not row.delay}  # "at" may have passed
        later = any(row.delay or row.at is not None for _, _, row in checked)
        counts = Counter(lane.queue for _, lane, row in checked if not row.delay)
        others = {queue for queue in queues if self._local is None or not self._local.takes(queue, counts[queue])}
        sent = time.monotonic()
        notify = self._bell.rides_along(others) or later
        rows = [row for _, _, row in checked]
        placed, told = await self._session.call(insert_all(self._sql, rows, notify=notify, soon=LONGEST_POLL))
        if told and len(others) == 1 and not later:
            self._bell.told(others, sent)
        elif not (notify and told):
            for queue in others:
                self._bell.later(queue)
        if self._local is not None:
            waits = [row.delay or 0.0 for _, _, row in checked if row.delay or row.at is not None]
            self._local.inserted(queues, min(waits, default=None))
        return [
            Inserted(Handle(place.id, row.key, spec.name, self), place.duplicate)
            for (spec, _, row), place in zip(checked, placed, strict=True)
        ]

    def _check(self, item: BulkItem) -> tuple[MachineSpec, LaneKey, NewInstance]:
        try:
            spec = spec_of(item.instance)
        except ConfigurationError as error:
            raise InvalidArgument(str(error)) from None
        if isinstance(item.instance, type) or not isinstance(item.instance, Machine):
            raise InvalidArgument(
                f"{spec.name} itself can't be inserted: give an instance, {spec.name}(...), or a bound job, "
                f"{spec.name}.bind(...)"
            )
        if spec not in self._settings.machines:
            known = ", ".join(sorted(s.name for s in self._settings.machines)) or "none"
            raise InvalidArgument(
                f"{spec.name} version {spec.version} is not registered with the engine {self._settings.name!r} "
                f"(it knows {known}): add it to machines="
            )
        state = spec.dump(item.instance)
        if len(state) > self._settings.max_state_bytes:
            raise InvalidState(
                f"the state of {spec.name} takes {len(state)} bytes, more than "
                f"max_state_bytes={self._settings.max_state_bytes}; keep large data elsewhere and refer to it"
            )
        row = NewInstance(
            0,
            spec.initial,
            msgspec.Raw(state),
            None if item.key is None else check_name(item.key, "key"),
            spec.priority if item.priority is None else check_priority(item.priority, "priority"),
            None if item.delay is None else check_seconds(item.delay, "delay"),
            _check_at(item.at),
        )
        if row.delay is not None and row.at is not None:
            raise InvalidArgument(f"delay={item.delay!r} and at={item.at!r} were both given: give one of them")
        queue = spec.queue if item.queue is None else check_name(item.queue, "queue")
        return spec, LaneKey(queue, spec.name, spec.version), row

    async def _lanes_for(self, wanted: Mapping[LaneKey, MachineSpec]) -> dict[LaneKey, int]:
        missing = {key: spec for key, spec in wanted.items() if key not in self._lanes}
        if missing:
            await self._check_queues({key.queue for key in missing})
            keeps = {key: self._keep(spec) for key, spec in missing.items()}
            self._lanes.update(await self._session.call(ensure_lanes(self._sql, keeps)))
            # Workers that run these queues must learn of the new lanes.
            if self._local is not None:
                self._local.lanes_changed()
            await self._session.fetch(self._sql["queues/wake"].bind(messages=["l:"]))
        return {key: self._lanes[key] for key in wanted}

    async def _lane(self, spec: MachineSpec, queue: str) -> int:
        key = LaneKey(queue, spec.name, spec.version)
        return (await self._lanes_for({key: spec}))[key]

    def _keep(self, spec: MachineSpec) -> float | None:
        keep = self._settings.retention if spec.retention is None else spec.retention
        return None if math.isinf(keep) else keep

    async def _check_queues(self, queues: set[str]) -> None:
        if queues - self._known_queues:
            rows = await self._session.fetch(self._sql["queues/names"].bind())
            self._known_queues |= {row[0] for row in rows}
        for queue in sorted(queues - self._known_queues):
            raise InvalidArgument(
                f"there is no queue {queue!r}; known are {', '.join(sorted(self._known_queues))}: "
                "name it in queues= of the engine that should run it"
            )

    # Reading --------------------------------------------------------------------------------------

    async def get(self, target: int | str) -> Snapshot:
        """An instance, by id or by key (the live one of that key, else the one that ended last).

        Raises:
            NoSuchInstance: there is none, or its retention has passed.
        """
        found: Snapshot | None = await self._session.call(reading.find(self._sql, _check_target(target)))
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

    # Waiting --------------------------------------------------------------------------------------

    async def result(self, target: int | str, timeout: float | None = None) -> Any:
        """Waits for an instance's end and returns its result.

        Args:
            target: id or key.
            timeout: seconds; None waits for ever.

        Raises:
            InstanceFailed, InstanceCancelled: how it ended.
            StillRunning: the time is up; the instance goes on.
            NoSuchInstance: there is none.
            DatabaseUnreachable: the database stays away for a minute.
        """
        limit = None if timeout is None else check_seconds(timeout, "timeout")
        until = math.inf if limit is None else time.monotonic() + limit
        found = await self.get(target)
        event = asyncio.Event()
        waiters = self._waiters.setdefault(found.id, set())
        waiters.add(event)
        pause = FIRST_LOOK
        heard_at = time.monotonic()
        try:
            while True:
                event.clear()
                try:
                    found = await self.get(found.id)
                    heard_at = time.monotonic()
                except DatabaseUnreachable:  # it may be back in a moment, and the instance goes on
                    if time.monotonic() - heard_at > AWAY_SECONDS:
                        raise
                if found.terminal:
                    return _outcome_of(found)
                remaining = until - time.monotonic()
                if remaining <= 0:
                    raise StillRunning(found.id, found.status, limit or 0.0)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(pause, remaining)):
                        await event.wait()
                pause = min(pause * 1.5, LONGEST_LOOK)
        finally:
            waiters.discard(event)
            if not waiters:
                self._waiters.pop(found.id, None)

    def _ended(self, instance_id: int) -> None:
        """The worker of this process has committed an instance's end."""
        for event in self._waiters.get(instance_id, ()):
            event.set()

    # Steering -------------------------------------------------------------------------------------

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


def _check_target(target: int | str) -> int | str:
    if isinstance(target, bool) or not isinstance(target, int | str):
        raise InvalidArgument(f"target={target!r}: give an id (a number) or a key (a string)")
    if isinstance(target, str):
        return check_name(target, "target")
    if not -(2**63) <= target < 2**63:
        raise NoSuchInstance(target)
    return target


def _check_at(at: datetime | None) -> datetime | None:
    if at is None:
        return None
    if not isinstance(at, datetime):
        raise InvalidArgument(f"at={at!r}: give an aware datetime")
    if at.tzinfo is None or at.utcoffset() is None:
        raise InvalidArgument(f"at={at!r} has no time zone: give an aware datetime, like datetime.now(UTC)")
    try:
        utc = at.astimezone(UTC)
    except OverflowError:
        utc = None
    # A time that some session's time zone puts outside datetime's range could be stored, and never read back.
    if utc is None or not 1900 <= utc.year <= 9000:
        raise InvalidArgument(f"at={at!r} is out of range: its UTC time must be in the years 1900 to 9000")
    return utc


def _outcome_of(found: Snapshot) -> Any:
    if found.status == "failed":
        raise InstanceFailed(found.id, found.error)
    if found.status == "cancelled":
        raise InstanceCancelled(found.id, found.error)
    return found.result
