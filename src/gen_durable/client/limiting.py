"""Limits: setting them for the whole cluster, looking at them, and why an instance waits."""

from __future__ import annotations

import builtins
from typing import Any

from gen_durable._caller import Runs
from gen_durable._checks import check_name, shown
from gen_durable._store import limiting
from gen_durable._store.limiting import Facts, Kind, NewLimit
from gen_durable._store.operation import Operation
from gen_durable.client.base import check_target
from gen_durable.client.explaining import explain
from gen_durable.client.reading import ReadingCalls
from gen_durable.config import check_rates
from gen_durable.errors import InvalidArgument
from gen_durable.limits import MAX_TOKENS, Rate, check_limit_name
from gen_durable.snapshot import LimitInfo, Why
from gen_durable.status import Status

__all__ = ["LimitingCalls"]

LOOKS = 5  # the instance may go on between the two statements of a look


class LimitingCalls(ReadingCalls):
    """``set_limit``, ``limits`` and ``why``."""

    async def set_limit(self, name: str, limit: int | Rate | None, *, queue: bool = False, conn: Any = None) -> bool:
        """Sets a limit for the whole cluster, at once: also for what holds it or waits for it already.

        It stays when engines start again whose configuration says what it said before; where that says something else
        than before, it wins. A lowered limit takes nothing away from what runs: nothing new starts until there is room.

        Args:
            name: of a concurrency key or a rate, without a partition (the limit is each partition's); or the queue's.
            limit: how many instances of one key run at once, at least 1; or a :class:`gen_durable.Rate`. None takes a
                limit away: then one instance of a key runs at a time, and a queue has no cap.
            queue: the limit is a queue's: how many steps of it run at once in the cluster.
            conn: a connection of the caller's: then it takes effect when the caller's transaction commits.

        Returns:
            Whether anything is new.

        Raises:
            InvalidArgument: an argument is wrong; there is no such queue; there is only a rate of that name to be taken
                away, and steps need theirs.
            DatabaseUnreachable: no connection, or it broke: the limit may have been set.
        """
        runs = self._over(conn)
        new = _limit(name, limit, queue=queue)
        if new.kind == "queue":
            await self._check_queues({name})
        if limit is None:
            return await self._take_away(runs, new.kind, name)
        changed = await self._change(runs, limiting.set_limit(self._sql, new))
        if isinstance(limit, Rate) and conn is None:
            self._rates = {**self._rates, name: limit.burst}
        return changed

    async def _take_away(self, runs: Runs, kind: Kind, name: str) -> bool:
        changed = await self._change(runs, limiting.unset_limit(self._sql, kind, name))
        if not changed and kind == "concurrency":
            await self._load_rates()
        if not changed and kind == "concurrency" and name in self._rates:
            raise InvalidArgument(
                f"{name!r} is a rate limit, and steps that name it need it: set a faster Rate instead of None"
            )
        return changed

    async def _change(self, runs: Runs, change: Operation[builtins.list[tuple[Kind, str]]]) -> bool:
        """Changes limits, and sees to it that whoever waits for them is looked at; whether any has changed."""
        here = runs is self._session
        operation = limiting.telling(self._sql, change, asking=not here)
        changed: builtins.list[tuple[Kind, str]] = await runs.together(operation)
        if not here:
            return bool(changed)
        if changed:
            await self._session.call(limiting.tell(self._sql, changed))
        if changed and self._local is not None:  # also where it hears no notifications
            self._local.knocked()
            queues = {name for kind, name in changed if kind == "queue"}
            if queues:
                self._local.lanes_changed()
        return bool(changed)

    def _limit_changed(self, kind: Kind, name: str) -> None:
        """A limit was changed in a transaction of somebody's that has committed: see :meth:`_change`."""
        self._bell.send(limiting.tell(self._sql, [(kind, name)]))

    async def limits(self) -> builtins.list[LimitInfo]:
        """The limits that are set, by kind and name, with how much of each is in use.

        Keys whose name nobody has set a limit for are not among them: of those one instance runs at a time. Counts end
        at 10,000.
        """
        found: builtins.list[LimitInfo] = await self._session.call(limiting.listed(self._sql))
        return found

    async def why(self, target: int | str) -> Why:
        """Why an instance does not run, or what it does: in a sentence, and in figures.

        Args:
            target: id or key (the live one of that key, else the one that ended last).

        Raises:
            NoSuchInstance: there is none, or its retention has passed.
        """
        found = await self.get(check_target(target))
        lease, grace = self._settings.lease, 2 * self._settings.heartbeat
        facts: Facts | None = None
        for _ in range(LOOKS):
            facts = None
            if not found.terminal:
                facts = await self._session.call(limiting.facts(self._sql, found.id, lease=lease, grace=grace))
            if found.terminal or (facts is not None and Status(facts.status).label == found.status):
                break
            found = await self.get(found.id)
        return explain(found, facts)

    # At the start ---------------------------------------------------------------------------------

    async def _open_limits(self) -> None:
        """Makes the configured limits known, and learns of the rates that there are.

        Raises:
            ConfigurationError: a step names a rate that there is not, or takes more tokens than it ever holds.
        """
        settings = self._settings
        configured = [
            *(NewLimit("concurrency", name, most) for name, most in settings.concurrency_limits.items()),
            *(NewLimit("queue", name, most) for name, most in settings.queue_limits.items()),
            *(NewLimit("rate", name, *_tokens(rate)) for name, rate in settings.rate_limits.items()),
        ]
        if configured:
            await self._change(self._session, limiting.seed(self._sql, configured))
        self._rates = await self._session.call(limiting.rates(self._sql))
        check_rates(settings.machines, self._rates)


def _tokens(rate: Rate) -> tuple[float, float, float]:
    return rate.limit, rate.per, rate.burst


def _limit(name: Any, limit: Any, *, queue: Any) -> NewLimit:
    """The arguments of ``set_limit``, checked."""
    if not isinstance(queue, bool):
        raise InvalidArgument(f"queue={queue!r}: use True or False")
    if isinstance(name, tuple):
        raise InvalidArgument(f"name={shown(name)}: a limit holds for each partition of its name: give the name alone")
    if queue:
        check_name(name, "the queue")
    else:
        check_limit_name(name, "the limit's name", InvalidArgument)
    if isinstance(limit, Rate) and not queue:
        return NewLimit("rate", name, *_tokens(limit))
    kind: Kind = "queue" if queue else "concurrency"
    if limit is None:
        return NewLimit(kind, name, 1)
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_TOKENS:
        rate = "" if queue else ", a Rate(limit, per=seconds)"
        raise InvalidArgument(
            f"limit={shown(limit)} of {name!r}: give a whole number from 1 to {MAX_TOKENS}{rate}, "
            "or None to take it away"
        )
    return NewLimit(kind, name, limit)
