"""Bringing instances into being."""

from __future__ import annotations

import asyncio
import builtins
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import is_
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

import msgspec

from gen_durable._caller import Runs
from gen_durable._checks import check_name, check_priority, check_seconds
from gen_durable._store.inserting import (
    LaneKey,
    NewInstance,
    Placed,
    PlainInstance,
    in_one,
    insert_all,
    replace_or_insert,
)
from gen_durable.client.handle import Handle, Inserted
from gen_durable.client.waiting import WaitingCalls
from gen_durable.config import LONGEST_POLL
from gen_durable.errors import (
    ConfigurationError,
    DuplicateInstance,
    InvalidArgument,
    InvalidState,
)
from gen_durable.limits import RateRefused, check_known
from gen_durable.machine import Machine, MachineSpec, spec_of
from gen_durable.outcome import KEEP, Child, KeyOption, WeightOption
from gen_durable.status import Status

if TYPE_CHECKING:
    from gen_durable.client import Client

__all__ = ["BulkItem", "InsertingCalls", "check_at"]

Conflict: TypeAlias = Literal["raise", "existing", "replace"]
Checked: TypeAlias = tuple[MachineSpec, LaneKey, NewInstance]

T = TypeVar("T")

AT_A_TIME = 500  # children that are checked without a pause
_NONE = (None, None, None, None, None, None, KEEP, KEEP, KEEP)


@dataclass(frozen=True, slots=True)
class BulkItem:
    """One instance of an ``insert_many``, with options of its own; they mean what they mean in ``insert``."""

    instance: Machine
    key: str | None = None
    queue: str | None = None
    priority: int | None = None
    delay: float | timedelta | None = None
    at: datetime | None = None
    scope: Iterable[str] | None = None
    concurrency_key: KeyOption = KEEP
    rate_limit: KeyOption = KEEP
    weight: WeightOption = KEEP


def _item(instance: Machine, options: tuple[Any, ...]) -> Machine | BulkItem:
    """An instance with the options of a call, where any was given."""
    bare = all(map(is_, options, _NONE)) and not isinstance(instance, BulkItem)  # which is insert_many's
    return instance if bare else BulkItem(instance, *options)


class InsertingCalls(WaitingCalls):
    """``insert`` and ``insert_many``."""

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
        scope: Iterable[str] | None = None,
        concurrency_key: KeyOption = KEEP,
        rate_limit: KeyOption = KEEP,
        weight: WeightOption = KEEP,
        conn: Any = None,
    ) -> Handle:
        """Inserts a machine or a bound job; it is there, durably, when this returns.

        Args:
            instance: ``Checkout(order=42)`` or ``send_welcome.bind(user_id=7)``.
            key: its business identity, at most 512 bytes: at most one instance in its ``scope`` has it.
            queue: another queue than its machine's.
            priority: −32768 to 32767, lower first; by default its machine's.
            delay: seconds (or a timedelta) until it is due, by the database's clock.
            at: when it is due: an aware datetime. Give one of ``delay`` and ``at``.
            on_conflict: what to do when the key is taken: ``"raise"``, or give the ``"existing"`` one's handle, or
                ``"replace"`` it where it waits and no worker has ever taken it: it gets the new state, machine, queue,
                priority and time, and keeps its id.
            scope: the statuses in which the instance holds its key. By default every one that is not terminal, which
                ``"live"`` stands for; ``("live", "done")`` keeps it taken while the row of a done one exists; ``()`` is
                no uniqueness, and the key only an address (of the newest).
            concurrency_key: the instance's own, for all steps that declare none: a name, or a name and a partition.
                None is no limit; by default what its machine declares.
            rate_limit: of its first step; None is no limit; by default what the step declares.
            weight: the tokens that its first step takes there; None is 1; by default what the step declares.
            conn: a connection of the caller's: then it is there when the caller's transaction commits, if it does, and
                workers are woken at that moment. See the guide on transactions.

        Raises:
            DuplicateInstance: the key is taken (and ``on_conflict`` does not help).
            InvalidState: the state can't be stored.
            InvalidArgument: another argument is wrong; nothing was written.
            DatabaseUnreachable: no connection, or it broke.
        """
        if on_conflict not in ("raise", "existing", "replace"):
            raise InvalidArgument(f'on_conflict={on_conflict!r}: use "raise", "existing" or "replace"')
        item = _item(instance, (key, queue, priority, delay, at, scope, concurrency_key, rate_limit, weight))
        if on_conflict == "replace":
            inserted = await self._replace(item, conn)
        else:
            (inserted,) = await self.insert_many([item], conn=conn)
        if inserted.duplicate and on_conflict != "existing":
            assert key is not None
            raise DuplicateInstance(key, inserted.id)
        return inserted.handle

    async def insert_many(self, items: Iterable[Machine | BulkItem], *, conn: Any = None) -> builtins.list[Inserted]:
        """Inserts any number, a few thousand in each round trip; answers for each, in the order given.

        All items are checked before the first is written. Each round trip is a transaction of its own. An item whose
        key is taken, also by an earlier item, is reported as a duplicate.

        Args:
            items: machines and bound jobs, or :class:`BulkItem`s with options.
            conn: a connection of the caller's, as in ``insert``: then all round trips are one transaction.

        Raises:
            InvalidState, InvalidArgument: an item is wrong; nothing was written.
            DatabaseUnreachable: no connection, or it broke.
        """
        runs = self._over(conn)
        checked = await self._check_all(items)
        if not checked:
            return []
        await self._place(checked, conn)
        rows = [row for _, _, row in checked]
        placed = await (self._insert_here(checked) if conn is None else self._insert_there(runs, rows))
        client = cast("Client", self)
        return [
            Inserted(Handle(place.id, row.key, spec.name, client), place.duplicate)
            for (spec, _, row), place in zip(checked, placed, strict=True)
        ]

    async def _insert_there(self, runs: Runs, rows: builtins.list[NewInstance]) -> builtins.list[Placed]:
        """In a caller's transaction."""
        whole = in_one(rows)
        inserting = insert_all(self._sql, rows, soon=LONGEST_POLL, together=not whole)
        placed, _ = await (runs.call if whole else runs.together)(inserting)
        return placed  # type: ignore[no-any-return]  # a session answers with anything

    async def _insert_here(self, checked: Sequence[Checked]) -> builtins.list[Placed]:
        """On this client's own connections, where the worker of this process may take the rows at once."""
        rows = [row for _, _, row in checked]
        special = [row for row in rows if type(row) is not PlainInstance]
        waits = [row.delay or 0.0 for row in special if row.delay or row.at is not None]
        later = bool(waits)
        limited = any(row.limited for row in special)
        # One with an "at" may be due, too.
        counts = _count([lane.queue for _, lane, row in checked if not (special and (row.delay or row.limited))])
        queues = set(counts)
        birth = None
        if self._local is not None and not (later or limited):
            birth = self._local.expect(_count([row.lane for row in rows]))
        others: set[str] = set()
        if birth is None:
            others = {queue for queue in queues if self._local is None or not self._local.takes(queue, counts[queue])}
        sent = time.monotonic()
        notify = self._bell.rides_along(others) or later or limited
        inserting = insert_all(self._sql, rows, notify=notify, soon=LONGEST_POLL, birth=birth)
        try:
            placed, told = await self._bringing(inserting, birth)
        except BaseException:  # the rows may be there all the same
            for queue in queues:
                self._bell.later(queue)
            raise
        if birth is not None:
            others = queues = {
                lane.queue
                for (_, lane, _), place in zip(checked, placed, strict=True)
                if not place.duplicate and place.id not in birth.started
            }
        if told and len(others) == 1 and not (later or limited):
            self._bell.told(others, sent)
        elif not (notify and told):
            for queue in others:
                self._bell.later(queue)
        if self._local is not None:
            self._local.inserted(queues, min(waits, default=None))
            if limited:
                self._local.knocked()
        return placed  # type: ignore[no-any-return]

    def _handle(self, instance_id: int, key: str | None, machine: str) -> Handle:
        return Handle(instance_id, key, machine, cast("Client", self))

    async def _replace(self, item: Machine | BulkItem, conn: Any) -> Inserted:
        runs = self._over(conn)
        spec, lane, row = await self._checked(item)
        if row.key is None or row.scope == 0:
            raise InvalidArgument('on_conflict="replace" needs a key with a scope: what would it replace?')
        row.lane = await self._lane(spec, lane.queue, conn)
        place = await runs.call(replace_or_insert(self._sql, row, soon=LONGEST_POLL))
        if self._local is not None and conn is None:
            self._local.inserted({lane.queue}, row.delay or (None if row.at is None else 0.0))
            if row.limited:
                self._local.knocked()
        return Inserted(self._handle(place.id, row.key, spec.name), place.duplicate)

    async def _prepare(self, children: Sequence[Child]) -> builtins.list[NewInstance]:
        """The rows of a spawn's children, checked."""
        items = [
            _item(
                child.instance,
                (
                    child.key, child.queue, child.priority, child.delay, child.at, None,
                    child.concurrency_key, child.rate_limit, child.weight,
                ),
            )
            for child in children
        ]  # fmt: skip
        checked: builtins.list[Checked] = []
        for start in range(0, len(items), AT_A_TIME):
            if start:
                await asyncio.sleep(0)  # others get their turn
            checked += await self._check_all(items[start : start + AT_A_TIME])
        await self._place(checked)
        return [row for _, _, row in checked]

    async def _place(self, checked: Sequence[Checked], conn: Any = None) -> None:
        lanes = await self._lanes_for({lane: spec for spec, lane, _ in checked}, conn)
        for _, lane, row in checked:
            row.lane = lanes[lane]

    async def _checked(self, item: Machine | BulkItem) -> Checked:
        """An item's row."""
        return (await self._check_all([item]))[0]

    async def _check_all(self, items: Iterable[Machine | BulkItem]) -> builtins.list[Checked]:
        """Items' rows. Before a rate is refused, what others may have set since is read once."""
        checked = []
        for item in items:
            try:
                checked.append(self._check(item))
            except RateRefused:
                await self._load_rates()
                try:
                    checked.append(self._check(item))
                except RateRefused as error:
                    raise InvalidArgument(str(error)) from None
        return checked

    def _check(self, item: Machine | BulkItem) -> Checked:
        if isinstance(item, BulkItem):
            return self._check_options(item)
        spec, lane = self._of(item)
        if spec.limited:
            return self._check_options(BulkItem(item))
        state, _ = self._state(spec, item)
        return spec, lane, PlainInstance(0, spec.initial, msgspec.Raw(state), None, spec.priority)

    def _of(self, instance: Any) -> tuple[MachineSpec, LaneKey]:
        """What a machine is, and its usual lane."""
        found = self._own.get(type(instance))
        if found is None:
            spec = self._registered(instance)
            found = self._own[type(instance)] = spec, LaneKey(spec.queue, spec.name, spec.version)
        return found

    def _registered(self, instance: Any) -> MachineSpec:
        try:
            spec = spec_of(instance)
        except ConfigurationError as error:
            raise InvalidArgument(str(error)) from None
        if isinstance(instance, type) or not isinstance(instance, Machine):
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
        return spec

    def _state(self, spec: MachineSpec, instance: Machine) -> tuple[bytes, dict[str, Any]]:
        """Its state as it is stored, and as a step will get it."""
        state, values = spec.codec.validated(instance.__dict__)
        if len(state) > self._settings.max_state_bytes:
            raise InvalidState(
                f"the state of {spec.name} takes {len(state)} bytes, more than "
                f"max_state_bytes={self._settings.max_state_bytes}; keep large data elsewhere and refer to it"
            )
        return state, values

    def _check_options(self, item: BulkItem) -> Checked:
        spec, lane = self._of(item.instance)
        state, values = self._state(spec, item.instance)
        row = NewInstance(
            0,
            spec.initial,
            msgspec.Raw(state),
            None if item.key is None else check_name(item.key, "key"),
            spec.priority if item.priority is None else check_priority(item.priority, "priority"),
            None if item.delay is None else check_seconds(item.delay, "delay"),
            check_at(item.at),
            None if item.scope is None else _check_scope(item.scope),
        )
        if item.scope is not None and item.key is None:
            raise InvalidArgument(
                f"scope={item.scope!r} without a key: a scope is what a key is held in; give key= too"
            )
        if row.delay is not None and row.at is not None:
            raise InvalidArgument(f"delay={item.delay!r} and at={item.at!r} were both given: give one of them")
        if spec.limited or not (item.concurrency_key is item.rate_limit is item.weight is KEEP):
            self._limit(spec, item, spec.load(values), row)
        if item.queue is not None:
            lane = LaneKey(check_name(item.queue, "queue"), spec.name, spec.version)
        return spec, lane, row

    def _limit(self, spec: MachineSpec, item: BulkItem, machine: Machine, row: NewInstance) -> None:
        """Writes into a row what it is held to."""
        row.own_gate = spec.own_gate(machine, item.concurrency_key)
        limits = spec.limits_of(spec.initial, machine, row.own_gate, rate_limit=item.rate_limit, weight=item.weight)
        check_known(limits, self._rates)
        row.gate, row.rate, row.weight = limits.gate, limits.rate, limits.weight


def _count(values: builtins.list[T]) -> Mapping[T, int]:
    """How often each is there."""
    return {values[0]: 1} if len(values) == 1 else Counter(values)


def _check_scope(scope: Iterable[str]) -> int | None:
    """A key's scope as a number: None is the live statuses, 0 no status, else a bit for each terminal one besides."""
    listed: list[Any] = [scope] if isinstance(scope, str) else list(scope) if isinstance(scope, Iterable) else [None]
    if not all(isinstance(label, str) for label in listed):
        raise InvalidArgument(f'scope={scope!r}: give statuses, like ("live", "done")')
    labels = set(listed)
    live = {status.label for status in Status if not status.terminal}
    terminal = {status.label: 1 << status for status in Status if status.terminal}
    if unknown := labels - live - terminal.keys() - {"live"}:
        raise InvalidArgument(
            f'scope has {sorted(unknown)[0]!r}, which is no status; use "live", {", ".join(sorted(terminal))}, or ()'
        )
    if labels and "live" not in labels and not live <= labels:
        raise InvalidArgument(
            f"scope={sorted(labels)!r}: a key is held while its instance is live, or not at all; "
            f'add "live", or use () for a key without uniqueness'
        )
    if not labels:
        return 0
    return sum(terminal.get(label, 0) for label in labels) or None


def check_at(at: datetime | None, name: str = "at") -> datetime | None:
    """A time in UTC, when it can be stored."""
    if at is None:
        return None
    if not isinstance(at, datetime):
        raise InvalidArgument(f"{name}={at!r}: give an aware datetime")
    if at.tzinfo is None or at.utcoffset() is None:
        raise InvalidArgument(f"{name}={at!r} has no time zone: give an aware datetime, like datetime.now(UTC)")
    try:
        utc = at.astimezone(UTC)
    except OverflowError:
        utc = None
    # A time that some session's time zone puts outside datetime's range could be stored, and never read back.
    if utc is None or not 1900 <= utc.year <= 9000:
        raise InvalidArgument(f"{name}={at!r} is out of range: its UTC time must be in the years 1900 to 9000")
    return utc
