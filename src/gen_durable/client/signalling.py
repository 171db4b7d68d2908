"""Signals to instances."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from gen_durable._checks import check_name
from gen_durable._store.signalling import Delivery, NewSignal, deliver, deliver_or_insert
from gen_durable.client.base import check_target
from gen_durable.client.handle import Handle
from gen_durable.client.inserting import BulkItem, InsertingCalls
from gen_durable.codec import encode_value
from gen_durable.config import LONGEST_POLL
from gen_durable.errors import NoSuchInstance
from gen_durable.machine import Machine
from gen_durable.outcome import KEEP, KeyOption, WeightOption

__all__ = ["SignallingCalls"]

_SIGNALS = "\0signals"  # the bell's name for the wake-ups of all queues by signals; no queue has a NUL in its name


class SignallingCalls(InsertingCalls):
    """``signal`` and ``signal_or_insert``."""

    # Whether the last row that a signal woke was one for this process's worker: then the next one likely is too, and a
    # notification would only make that worker look a second time.
    _wakes_here = False

    async def signal(
        self, target: int | str, name: str, payload: Any = None, *, dedup_key: str | None = None, conn: Any = None
    ) -> bool:
        """Puts a signal into an instance's inbox; it is there, durably, when this returns.

        It wakes the instance when that waits for this name, now or later: see ``Await``.

        Args:
            target: id or key of a live instance.
            name: what it waits for, at most 512 bytes.
            payload: anything that can be written as JSON.
            dedup_key: the same one twice for one instance is one signal, also when the first was consumed.
            conn: a connection of the caller's: then the signal is there when the caller's transaction commits, and the
                instance's row is locked until then. See the guide on transactions.

        Returns:
            Whether it is new; False where its ``dedup_key`` was there already.

        Raises:
            NoSuchInstance: there is no live instance of this id or key; nothing was stored.
            InvalidArgument: an argument is wrong; ``InvalidPayload`` for the payload.
            DatabaseUnreachable: no connection, or it broke: the signal may be there. With a ``dedup_key`` it can be
                sent again without harm.
        """
        where = check_target(target)
        runs = self._over(conn)
        new = self._signal(name, payload, dedup_key)
        for _ in range(2 if isinstance(where, str) else 1):
            # A key's holder may have ended, and another have come, while the statement waited for the first.
            if conn is None:
                delivery = await self._deliver(where, new)
            else:
                delivery = await runs.call(deliver(self._sql, where, new))
            if delivery is not None:
                break
        else:
            raise NoSuchInstance(target, live=True)
        if conn is None:
            self._announce(delivery)
        return delivery.fresh

    async def signal_or_insert(
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
    ) -> Handle:
        """Delivers a signal to the live instance of a key, or inserts the instance with the signal in its inbox.

        Atomically: whoever races, one instance has the key, and every signal is in its inbox.

        Args:
            instance, queue, priority, delay, at, concurrency_key, rate_limit, weight: what is inserted where there is
                none, as in ``insert``.
            key: the key.
            name, payload, dedup_key: the signal, as in ``signal``.
            conn: a connection of the caller's, as in ``insert`` and ``signal``.

        Raises:
            DuplicateInstance: the key's last instance has ended and its scope still reserves the key.
            InvalidState, InvalidArgument, DatabaseUnreachable: as in ``insert`` and ``signal``.
        """
        item = BulkItem(
            instance, check_name(key, "key"), queue, priority, delay, at,
            concurrency_key=concurrency_key, rate_limit=rate_limit, weight=weight,
        )  # fmt: skip
        spec, lane, row = await self._checked(item)
        new = self._signal(name, payload, dedup_key)
        if conn is not None:
            runs = self._over(conn)
            row.lane = await self._lane(spec, lane.queue)
            there: Delivery = await runs.together(deliver_or_insert(self._sql, row, new, soon=LONGEST_POLL))
            return self._handle(there.id, key, spec.name)
        delivery = await self._deliver(key, new)
        if delivery is None:
            told = not self._wakes_here and self._bell.rides_along([_SIGNALS])
            row.lane = await self._lane(spec, lane.queue)
            delivery = await self._session.together(
                deliver_or_insert(self._sql, row, new, notify=told, soon=LONGEST_POLL)
            )
        self._announce(delivery)
        if self._local is not None and delivery.started and (row.delay or row.at is not None):
            self._local.inserted(set(), row.delay or 0.0)
        return self._handle(delivery.id, key, spec.name)

    async def _deliver(self, target: int | str, new: NewSignal) -> Delivery | None:
        place = None if self._local is None else self._local.expect_one()
        told = not self._wakes_here and self._bell.rides_along([_SIGNALS])
        operation = deliver(self._sql, target, new, notify=told, place=place)
        delivery: Delivery | None = await self._bringing(operation, place)
        self._wakes_here = self._wakes_here or (place is not None and bool(place.started))
        return delivery

    def _signal(self, name: str, payload: Any, dedup_key: str | None) -> NewSignal:
        if dedup_key is not None:
            check_name(dedup_key, "dedup_key")
        body = None
        if payload is not None:
            limit = self._settings.max_state_bytes
            body = encode_value(payload, f"the payload of the signal {name!r}", limit).decode()
        return NewSignal(check_name(name, "the name of a signal"), body, dedup_key)

    def _announce(self, delivery: Delivery) -> None:
        """A signal may have woken a row: its queue's workers, here and elsewhere, are to look."""
        queue = delivery.queue
        if delivery.knocked:  # the statement has told of it
            if self._local is not None:
                self._local.knocked()
            return
        if not delivery.woken or queue is None:
            return
        here = self._wakes_here = self._local is not None and self._local.takes(queue, 1)
        if self._local is not None:
            self._local.inserted({queue}, None)
        if not delivery.told and not here:
            self._bell.later(queue)
