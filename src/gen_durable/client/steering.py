"""Steering instances and queues."""

from __future__ import annotations

from typing import Any

import msgspec

from gen_durable._caller import Runs, state_of
from gen_durable._checks import check_name
from gen_durable._store import reading, steering
from gen_durable.client.base import check_target
from gen_durable.client.signalling import SignallingCalls
from gen_durable.context import ChildResult
from gen_durable.errors import DuplicateInstance, InvalidArgument, NoSuchInstance

__all__ = ["SteeringCalls"]

UNIQUE_VIOLATION = "23505"


class SteeringCalls(SignallingCalls):
    """``cancel``, ``retry``, ``pause_queue`` and ``resume_queue``."""

    async def cancel(
        self, target: int | str, *, cascade: bool = False, reason: str = "cancelled", conn: Any = None
    ) -> bool:
        """Ends an instance as ``cancelled``, whatever it does: waiting, parked, or running.

        It has ended when this returns. A step that runs is cancelled, wherever its worker is; what comes of it all the
        same is refused. (A plain function in a thread can't be stopped: it runs on, and its outcome is refused.)

        Args:
            target: id or key.
            cascade: cancel its live children too, and theirs, in the same transaction; also of an instance that has
                ended already.
            reason: recorded as its error's message.
            conn: a connection of the caller's: then it ends when the caller's transaction commits, and its row is
                locked until then. See the guide on transactions.

        Returns:
            Whether it was live; False where it had ended already.

        Raises:
            NoSuchInstance: there is none.
            InvalidArgument: an argument is wrong.
            DatabaseUnreachable: no connection, or it broke: it may have been cancelled.
        """
        if not isinstance(cascade, bool):
            raise InvalidArgument(f"cascade={cascade!r}: use True or False")
        error = _reason(reason)
        runs = self._over(conn)
        found = await self._target(runs, target)
        if found.terminal and not cascade:
            return False
        operation = steering.cancel_all(self._sql, [found.id], error, keep=self._keeps_history, cascade=cascade)
        done: steering.Cancelled = await (runs.together if cascade else runs.call)(operation)
        if conn is None:
            self._settle_cancel(done)
        return found.id in done.ids

    async def _target(self, runs: Runs, target: int | str) -> steering.Target:
        found: steering.Target | None = await runs.call(steering.find(self._sql, check_target(target)))
        if found is None:
            raise NoSuchInstance(target)
        return found

    async def retry(self, target: int | str, *, conn: Any = None) -> None:
        """Runs a failed or cancelled instance again, from the step at which it ended and with the state it had.

        The step is handed the same signals and children as before (children as long as their rows exist); attempts
        count from 0 again, and the history goes on. One that was cancelled while it waited for a signal waits again,
        until the same deadline; one that waited for children goes on with what is there (``ctx.timed_out``).

        Args:
            target: id or key (the instance of that key that ended last).
            conn: a connection of the caller's: then it takes effect when the caller's transaction commits.

        Raises:
            NoSuchInstance: there is none, or its retention has passed.
            DuplicateInstance: another instance has taken its key meanwhile.
            InvalidArgument: it is neither failed nor cancelled.
        """
        runs = self._over(conn)
        found = await self._target(runs, target)
        operation = steering.bring_back(self._sql, found.id)
        try:
            # What fails must not spoil the caller's transaction.
            back: bool = await (runs.call if conn is None else runs.together)(operation)
        except Exception as error:
            if state_of(error) != UNIQUE_VIOLATION:
                raise
            held = await runs.fetch(self._sql["inserting/holders"].bind(keys=msgspec.json.encode([found.key]).decode()))
            raise DuplicateInstance(found.key or "", held[0][1] if held else found.id) from None
        if not back:
            raise InvalidArgument(
                f"instance {found.id} is {found.status.label}: only a failed or cancelled one can be retried"
            )
        if self._local is not None and conn is None:
            self._local.inserted({found.queue}, 0.0)  # its deadline may be near

    async def pause_queue(self, queue: str, *, conn: Any = None) -> None:
        """Stops claims from a queue in the whole cluster; steps that run go on to their end.

        Args:
            queue: its name.
            conn: a connection of the caller's: then it takes effect when the caller's transaction commits.

        Raises:
            InvalidArgument: there is no such queue.
        """
        await self._set_paused(queue, True, conn)

    async def resume_queue(self, queue: str, *, conn: Any = None) -> None:
        """Lets a paused queue go on.

        Args:
            queue: its name.
            conn: a connection of the caller's: then it takes effect when the caller's transaction commits.

        Raises:
            InvalidArgument: there is no such queue.
        """
        await self._set_paused(queue, False, conn)

    async def _set_paused(self, queue: str, paused: bool, conn: Any) -> None:
        runs = self._over(conn)
        await self._check_queues({check_name(queue, "queue")})
        await (runs.call if conn is None else runs.together)(reading.set_paused(self._sql, queue, paused))

    # What the worker asks for ---------------------------------------------------------------------

    async def _children(self, parent: int, spawn: int) -> list[ChildResult]:
        listed: list[ChildResult] = await self._session.call(steering.children(self._sql, parent, spawn))
        return listed

    async def _cancel_children(self, parent: int, spawn: int) -> None:
        error = _reason(f"the join of instance {parent} opened without it")
        operation = steering.cancel_children(self._sql, parent, spawn, error, keep=self._keeps_history)
        self._settle_cancel(await self._session.call(operation))

    @property
    def _keeps_history(self) -> bool:
        return self._settings.history != "off"

    def _settle_cancel(self, done: steering.Cancelled) -> None:
        """The worker of this process hears of it at once, not by notification."""
        for instance_id, claim in done.ids.items():
            self._ended(instance_id)
            if claim is not None and self._local is not None and claim.worker == self._local.id:
                self._local.cancelled(instance_id, claim.rev)
        if self._local is not None:
            self._local.awake(done.lanes)


def _reason(reason: object) -> bytes:
    if not isinstance(reason, str) or not reason:
        raise InvalidArgument(f"reason={reason!r}: give a text")
    return msgspec.json.encode({"type": "Cancelled", "message": check_name(reason[:500], "reason")})
