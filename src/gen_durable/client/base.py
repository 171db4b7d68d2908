"""What all calls of the client share: its connections, its lanes, and the worker of the same process."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping
from typing import Any

import msgspec
import psycopg

from gen_durable._bell import Bell, SilentBell
from gen_durable._blocking_ear import BlockingEar
from gen_durable._caller import CallerSession, Home, Runs
from gen_durable._checks import check_name
from gen_durable._ear import Ear
from gen_durable._session import Session
from gen_durable._store.inserting import LaneKey, ensure_lanes
from gen_durable._store.lending import Lent, lend
from gen_durable._store.limiting import rates
from gen_durable._store.operation import Operation, catalog
from gen_durable._waiter import LoopWaiter, Waiter
from gen_durable.config import Settings
from gen_durable.errors import DatabaseError, DatabaseUnreachable, EngineStateError, InvalidArgument, NoSuchInstance
from gen_durable.limits import Limits, RateRefused, check_known
from gen_durable.machine import MachineSpec

__all__ = ["Base", "check_target"]

LANE_SECONDS = 2.0


class _LocalWorker:
    """What the client needs of the worker in the same process; see ``_runtime.worker``."""

    id: int

    def awake(self, lanes: set[int]) -> None:
        """Rows of these lanes were woken."""
        raise NotImplementedError

    def takes(self, queue: str, count: int) -> bool:
        """Whether it would start so many rows of the queue at once."""
        raise NotImplementedError

    def expect(self, counts: Mapping[int, int]) -> Any:
        """Keeps places for so many rows of each lane, to be inserted as its claims; None: it can't promise that."""
        raise NotImplementedError

    def expect_one(self) -> Any:
        """Keeps a place for a row of any lane, that a signal may wake as its claim; None: it can't promise that."""
        raise NotImplementedError

    def inserted(self, queues: set[str], soonest: float | None) -> None:
        """Rows were inserted."""
        raise NotImplementedError

    def knocked(self) -> None:
        """Rows have come into lines of limits, or something was freed there."""
        raise NotImplementedError

    def lanes_changed(self) -> None:
        """There are new lanes."""
        raise NotImplementedError

    def schedules_changed(self) -> None:
        """There are other schedules."""
        raise NotImplementedError

    def cancelled(self, instance_id: int, rev: int) -> None:
        """An instance that it holds was cancelled, under this rev."""
        raise NotImplementedError

    @property
    def hears(self) -> bool:
        """Whether notifications reach it."""
        raise NotImplementedError


class Base:
    """The state behind the calls; each kind of call is a class of its own, and ``Client`` is all of them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sql = catalog(settings.schema)
        self._session = self._make_session()
        self._bell = self._make_bell()
        self._ear = self._make_ear()
        self._home = Home(self._session.fetch)
        self._lanes: dict[LaneKey, int] = {}
        self._own: dict[type, tuple[MachineSpec, LaneKey]] = {}  # of classes that were inserted
        # The burst of each rate limit.
        self._rates: dict[str, float] = {name: rate.burst for name, rate in settings.rate_limits.items()}
        self._known_queues: set[str] = {*settings.queues, *(spec.queue for spec in settings.machines)}
        self._waiters: dict[int, set[Waiter]] = {}
        self._waiters_lock = threading.Lock()
        self._local: Any = None  # the worker in this process
        self._test_clock = False

    # What a client without an event loop has others of ---------------------------------------------

    def _make_session(self) -> Session:
        return Session(self._settings)

    def _make_bell(self) -> Bell | SilentBell:
        return Bell(self._session, self._sql)

    def _make_ear(self) -> Ear | BlockingEar:
        return Ear(self._settings, self._sql, self._ended)

    def _make_waiter(self) -> Waiter:
        return LoopWaiter()

    def _lend(self, conn: Any) -> Lent:
        return lend(conn)

    def _use_clock(self, *, test: bool) -> None:
        """The schema says by which clock its rows are due: see ADR 14. What bell and ear send has no clock in it."""
        if test != self._test_clock:
            self._test_clock = test
            self._sql = catalog(self._settings.schema, test_clock=test)

    def _over(self, conn: Any) -> Runs:
        """What a call's operations run on: this client's own connections, or the one that the caller lends.

        In a caller's transaction nothing may be kept that it could still undo, and nobody here is told: its commit
        tells, as it tells others.

        Raises:
            InvalidArgument: ``conn`` is not a connection that can be used.
            EngineStateError: this client is not open.
        """
        if conn is None:
            return self._session
        self._session.check_open()
        return CallerSession(self._lend(conn), self._home, self._sql, self._settings.schema)

    async def _close(self) -> None:
        await self._ear.close()
        await self._bell.close()
        await self._session.close()
        self._ended(None)

    async def _bringing(self, operation: Operation[Any], birth: Any) -> Any:
        """Runs an operation that may bring rows to this process's worker as its claims."""
        if birth is None:
            return await self._session.call(operation)
        try:
            with birth:
                return await self._session.call(operation)
        finally:
            if birth.late:  # the worker's life has ended in the meantime
                claims = msgspec.json.encode([{"id": id_, "rev": rev} for id_, rev in sorted(birth.late)]).decode()
                with contextlib.suppress(DatabaseUnreachable, EngineStateError):  # then others find them
                    await self._session.fetch(self._sql["claiming/release"].bind(worker=birth.worker, claims=claims))

    def _ended(self, instance_id: int | None) -> None:
        """An instance has ended that somebody may wait for (None: any may have)."""
        with self._waiters_lock:
            known = self._waiters if instance_id is None else {instance_id: self._waiters.get(instance_id, ())}
            waiters = [waiter for several in known.values() for waiter in several]
        for waiter in waiters:
            waiter.set()

    async def _load_rates(self) -> None:
        """Reads which rates there are; where that can't be done, what was known stays."""
        with contextlib.suppress(DatabaseUnreachable, EngineStateError):
            self._rates = await self._session.call(rates(self._sql))

    async def _check_known(self, limits: Limits) -> None:
        """Refuses a rate that nobody has set, and more tokens than it ever holds.

        Another process may have set it since this one last looked: so it looks again before it refuses.

        Raises:
            InvalidArgument: the message names the limit.
        """
        try:
            check_known(limits, self._rates)
        except RateRefused:
            await self._load_rates()
        try:
            check_known(limits, self._rates)
        except RateRefused as error:
            raise InvalidArgument(str(error)) from None

    async def _lanes_for(self, wanted: Mapping[LaneKey, MachineSpec], conn: Any = None) -> dict[LaneKey, int]:
        """The numbers of lanes; new ones are committed at once, whatever becomes of the transaction of ``conn``."""
        missing = {key: spec for key, spec in wanted.items() if key not in self._lanes}
        if missing:
            await self._check_queues({key.queue for key in missing})
            keeps = {key: self._keep(spec) for key, spec in missing.items()}
            if conn is None:
                self._lanes.update(await self._session.call(ensure_lanes(self._sql, keeps)))
            else:
                self._lanes.update(await self._lanes_soon(keeps))
            # Workers that run these queues must learn of the new lanes.
            if self._local is not None:
                self._local.lanes_changed()
            await self._session.fetch(self._sql["queues/wake"].bind(messages=["l:"]))
        return {key: self._lanes[key] for key in wanted}

    async def _lanes_soon(self, keeps: Mapping[LaneKey, float | None]) -> dict[LaneKey, int]:
        """For a caller whose own transaction may be what holds the queue's row: he must not wait for himself."""
        operation = ensure_lanes(self._sql, keeps, patience=min(LANE_SECONDS, self._settings.statement_timeout / 2))
        try:
            lanes: dict[LaneKey, int] = await self._session.together(operation)
        except psycopg.errors.LockNotAvailable as error:
            queues = ", ".join(sorted({repr(key.queue) for key in keeps}))
            raise DatabaseError(
                f"the first use of a machine in the queue {queues} waits for a lock, which this very transaction may "
                "hold: pause and resume a queue at its end, after what goes into it; or try again"
            ) from error
        return lanes

    async def _lane(self, spec: MachineSpec, queue: str, conn: Any = None) -> int:
        key = LaneKey(queue, spec.name, spec.version)
        return (await self._lanes_for({key: spec}, conn))[key]

    def _keep(self, spec: MachineSpec) -> float | None:
        keep = self._settings.retention if spec.retention is None else spec.retention
        return None if math.isinf(keep) else keep

    async def _check_queues(self, queues: set[str]) -> None:
        if queues - self._known_queues:
            rows = await self._session.fetch(self._sql["queues/names"].bind())
            self._known_queues = self._known_queues | {row[0] for row in rows}
        for queue in sorted(queues - self._known_queues):
            raise InvalidArgument(
                f"there is no queue {queue!r}; known are {', '.join(sorted(self._known_queues))}: "
                "name it in queues= of the engine that should run it"
            )


def check_target(target: int | str) -> int | str:
    """``target`` when it can be an id or a key."""
    if isinstance(target, bool) or not isinstance(target, int | str):
        raise InvalidArgument(f"target={target!r}: give an id (a number) or a key (a string)")
    if isinstance(target, str):
        return check_name(target, "target")
    if not -(2**63) <= target < 2**63:
        raise NoSuchInstance(target)
    return target
