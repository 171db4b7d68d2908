"""Claims due rows in whole batches, and gives back what it can't start."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from gen_durable._runtime.held import Held, LocalQueue
from gen_durable._runtime.link import Link, LinkClosed, LinkDown
from gen_durable._runtime.service import Service, patience
from gen_durable._store.operation import Catalog, Operation, Request, Row
from gen_durable.events import ClaimEvent, Hooks, emit
from gen_durable.machine import MachineSpec

__all__ = ["Claim", "Claimer"]

log = logging.getLogger("gen_durable")

Claim = tuple[int, int]  # id and rev

# A buffered row that nobody could start for this long goes back, where an idle worker may take it.
STUCK_SECONDS = 0.5
SMOOTHING = 0.5
WAIT_SECONDS = 1.0  # that a row waits at most for another whose next crash is its last
MOST = 2000  # rows of one claim
CANCELLED = 10_000  # claims that are remembered as cancelled before their answer came
HELD_UP_SECONDS = 0.05  # between two looks whether commits have caught up, should nobody say so
AHEAD_BYTES = 8_000_000  # of state, that a queue holds at most beyond what runs


class Claimer(Service):
    """One claim statement for all queues at a time.

    How many rows a queue holds beyond those that run follows its pace (Little's law: as many as it starts during two
    round trips), so that short steps never wait for a claim and long ones leave the rest to other workers.
    """

    name = "claimer"

    def __init__(
        self,
        link: Link,
        sql: Catalog,
        worker: int,
        queues: dict[str, LocalQueue],
        held: dict[int, Held],
        hooks: Hooks,
        *,
        poll_interval: float,
        check_interval: float,
        prefetch: int,
        commits_lag: Callable[[], bool],
        max_crashes: Callable[[MachineSpec], int],
    ) -> None:
        super().__init__()
        self._link = link
        self._sql = sql
        self._worker = worker
        self._queues = list(queues.values())
        self._held = held
        self._hooks = hooks
        self._poll_interval = poll_interval
        self._check_interval = check_interval
        self._prefetch = prefetch
        self._commits_lag = commits_lag
        self._max_crashes = max_crashes
        self.specs: dict[int, tuple[MachineSpec, LocalQueue]] = {}
        self._trip = 0.005  # seconds that a claim takes
        self._pace = dict.fromkeys(queues, 0.0)  # starts per second
        self._marks: dict[str, tuple[float, int]] = {}
        self._check_at = time.monotonic() + check_interval
        self._most = MOST
        self._alone = 0  # the row whose next crash would be its last
        self.claiming = False  # a claim is under way
        self.failing = False  # the last claim failed, or a look at what is left
        self.closing = False
        self.on_rates: Callable[[set[str]], None] = lambda lines: None  # rows with these rates were claimed
        self.on_put_off: Callable[[float], None] = lambda seconds: None  # rows are due again in so many seconds
        self._cancelled: dict[Claim, None] = {}  # in the order in which we heard of it
        self.looks = 0  # how many looks for lost claims have begun
        self.held_up = False  # too many outcomes wait for their commit: to be woken when they are fewer
        self.lost: Callable[[list[Claim]], list[Claim]] = list  # of strays; see births.py

    def announce(self, queue: str | None) -> None:
        """There may be work in a queue (None: in any)."""
        for local in self._queues:
            if queue is None or local.name == queue:
                local.empty = False
                local.look_at = 0.0
                local.misses = 0
                self.wake()

    async def once(self) -> float:
        """One pass: give back, claim, say when to look again."""
        now = time.monotonic()
        if now >= self._check_at:
            await self.check()
        if self.closing:
            return self._poll_interval
        for queue in self._queues:
            await self._give_back_stuck(queue, now)
        await self._look_for_left(now)
        if self.closing:
            return self._poll_interval
        wanted = self._wanted(now)
        if not wanted:
            return self._sleep(now)
        await self.claim(wanted)
        return 0.0

    def _wanted(self, now: float) -> dict[LocalQueue, int]:
        self.held_up = self._commits_lag()
        if self.held_up:
            return {}
        wanted = {}
        for queue in self._queues:
            if queue.empty or queue.paused or not queue.lanes:
                continue
            capacity = queue.concurrency + queue.ahead
            room = min(capacity - queue.load, self._most)
            # Whole batches: when half of the room is free, or when nothing waits to be started.
            if room > 0 and (not queue.buffer or room * 2 >= capacity):
                wanted[queue] = room
        return wanted

    async def claim(self, wanted: dict[LocalQueue, int]) -> None:
        """Claims up to so many rows for each of these queues, and puts them into its buffer."""
        for queue in wanted:
            # Cleared before the statement: what is announced while it runs must not be forgotten.
            queue.empty = True
        started = time.monotonic()
        self.claiming = True
        try:
            if any(queue.capped for queue in wanted):
                rows = await self._link.together(self._below_caps(wanted))
            else:
                rows = await self._link.fetch(self._request(wanted))
        except BaseException as error:
            self._check_at = 0.0  # it may have claimed rows that we never heard of
            if isinstance(error, LinkDown):  # or was it too much for the link's deadline?
                self._most = max(1, max(wanted.values()) // 2)
            self.announce(None)
            self.failing = True
            raise
        finally:
            self.claiming = False
        self.failing = False
        self._most = min(MOST, self._most * 2)
        now = time.monotonic()
        self._trip += SMOOTHING * (now - started - self._trip)
        put_off: list[Claim] = []
        got = self.deal(rows, now, put_off)
        passed_by = len(rows) - sum(map(len, got.values()))
        for queue, room in wanted.items():
            count = len(got.get(queue, ()))
            if count:
                queue.misses = 0
            queue.backlog = count + passed_by >= room
            if queue.backlog:
                queue.empty = False
            elif queue.empty:
                # Under a cap there always is more than may be claimed.
                soon = patience(queue.misses + 4 if queue.capped else queue.misses)
                queue.look_at = now + min(soon, self._poll_interval)
                queue.doubted = True
            self._adapt(queue, now)
            if count:
                queue.put(got[queue])
            if count >= room:
                queue.on_full(queue)
        if any(queue.punctual for queue in wanted):
            rates = {held.rate for batch in got.values() for held in batch if held.rate is not None}
            if rates:
                self.on_rates(rates)
        if put_off:
            await self._put_off(put_off)
        if self._hooks.claim and rows:
            emit(self._hooks.claim, ClaimEvent(wanted=sum(wanted.values()), got=len(rows), took=now - started))

    def _request(self, wanted: dict[LocalQueue, int]) -> Request:
        wants = [
            {"lane": lane, "pool": pool, "room": share, "solo": solo, "counted": queue.capped}
            for pool, (queue, room) in enumerate(wanted.items())
            for lane, share, solo in _shares(queue, room)
        ]
        return self._sql["claiming/claim"].bind(worker=self._worker, wants=msgspec.json.encode(wants).decode())

    def _below_caps(self, wanted: dict[LocalQueue, int]) -> Operation[list[Row]]:
        """A claim of no more than the queues' caps leave, in the transaction that has counted."""
        capped = sorted(queue.name for queue in wanted if queue.capped)
        rooms: dict[str, int] = dict((yield self._sql["limiting/rooms"].bind(queues=capped)))
        # One whose cap has just been taken away is left for the next claim, which knows that.
        allowed = {
            queue: min(room, rooms.get(queue.name, 0)) if queue.capped else room for queue, room in wanted.items()
        }
        allowed = {queue: room for queue, room in allowed.items() if room > 0}
        return (yield self._request(allowed)) if allowed else []

    async def _look_for_left(self, now: float) -> None:
        """Asks whether queues still have due rows: a moment after a claim that came back short, then once in a while.

        What somebody had locked in that moment, if only to be told of its end, the claim has passed by; and over
        several lanes one that races with another worker's can come back short as well. Nobody would tell of such rows.
        """
        asked = []
        for queue in self._queues:
            if queue.empty and now >= queue.look_at and not queue.paused:
                if queue.doubted or queue.load < queue.concurrency + queue.ahead:
                    asked.append(queue)
                else:
                    queue.empty = False  # it claims when there is room: no looking at the clock until then
        lanes = [lane for queue in asked for lane in queue.lanes]
        if not lanes:
            return
        try:
            left = {lane for (lane,) in await self._link.fetch(self._sql["claiming/left"].bind(lanes=lanes))}
        except BaseException:
            self.failing = True
            for queue in asked:
                queue.empty = False
            raise
        for queue in asked:
            queue.doubted = False
            queue.left = [lane for lane in queue.lanes if lane in left]
            if queue.left:
                queue.misses += 1
                queue.empty = False
            else:
                queue.misses = 0
                queue.look_at = now + self._poll_interval

    def _must_wait(self, held: Held) -> bool:
        """Whether a row whose next crash is its last is to wait for another of the kind.

        Of those a worker holds one at a time: the one that takes its worker down does not take the others with it, who
        only happened to be there.
        """
        if held.crashes < self._max_crashes(held.spec) - 1:
            return False
        alone = self._held.get(self._alone)
        if alone is not None and alone.crashes:
            return True
        self._alone = held.id
        return False

    async def _put_off(self, claims: list[Claim]) -> None:
        listed = msgspec.json.encode([{"id": id_, "rev": rev} for id_, rev in sorted(claims)]).decode()
        request = self._sql["claiming/postpone"].bind(worker=self._worker, claims=listed, seconds=WAIT_SECONDS)
        try:
            ((count, _, delay),) = await self._link.fetch(request)
        except BaseException:
            self._check_at = 0.0  # they are found there
            raise
        if count:
            self.on_put_off(delay)

    def note_cancelled(self, id_: int, rev: int) -> None:
        """A claim was cancelled that we don't hold: its answer, should it be on its way, comes too late."""
        self._cancelled[id_, rev] = None
        if len(self._cancelled) > CANCELLED:
            del self._cancelled[next(iter(self._cancelled))]

    def was_cancelled(self, id_: int, rev: int) -> bool:
        """Whether a claim that we hear of now has been cancelled before."""
        return (id_, rev) in self._cancelled

    def deal(self, rows: list[Row], now: float, put_off: list[Claim]) -> dict[LocalQueue, list[Held]]:
        """Makes claims of the rows of ``claim.sql``, but for those that go to ``put_off`` and what was cancelled."""
        got: dict[LocalQueue, list[Held]] = {}
        held_rows, cancelled = self._held, self._cancelled
        for (
            id_, rev, lane, step, state, attempt, crashes, priority, key, due_at, inserted_at, parent, waits, gate, own,
            rate,
        ) in rows:  # fmt: skip
            if (id_, rev) in cancelled:
                continue
            spec, queue = self.specs[lane]
            held = Held(
                id_, rev, lane, step, state, attempt, crashes, priority, key, due_at, inserted_at, spec, queue, now,
                parent, waits, gate, own, rate,
            )  # fmt: skip
            if rate is not None:
                queue.punctual = True
            if crashes and self._must_wait(held):
                put_off.append((id_, rev))
                continue
            held_rows[id_] = held
            got.setdefault(queue, []).append(held)
        for queue, batch in got.items():
            size = sum(len(held.raw) for held in batch) / len(batch)
            queue.bytes += SMOOTHING * (size - queue.bytes)
            if len(queue.lanes) > 1:
                batch.sort(key=_urgency)
        return got

    def _adapt(self, queue: LocalQueue, now: float) -> None:
        since, started = self._marks.get(queue.name, (now - 0.1, 0))
        if now - since < 0.002:
            return
        pace = (queue.started - started) / (now - since)
        self._pace[queue.name] += SMOOTHING * (pace - self._pace[queue.name])
        self._marks[queue.name] = (now, queue.started)
        ahead = min(self._prefetch, int(self._pace[queue.name] * self._trip * 2))
        queue.ahead = 0 if queue.punctual or queue.capped else min(ahead, int(AHEAD_BYTES / queue.bytes))

    async def _give_back_stuck(self, queue: LocalQueue, now: float) -> None:
        if queue.buffer and (queue.paused or (queue.saturated and now - queue.buffer[0].buffered_at > STUCK_SECONDS)):
            queue.ahead = 0
            self._pace[queue.name] = 0.0
            await self.give_back(queue)

    async def give_back(self, queue: LocalQueue) -> None:
        """Hands every row of the queue's buffer back, as it was claimed."""
        rows = sorted(queue.buffer, key=lambda held: held.id)
        queue.buffer.clear()
        for held in rows:
            self.forget(held)
        if rows:
            await self.release([(held.id, held.rev) for held in rows])

    async def release(self, claims: list[Claim]) -> int:
        """Gives claims back; one that is not held any more is left alone. Answers with how many there were.

        Raises:
            LinkClosed: the worker has ended: others find them.
        """
        listed = msgspec.json.encode([{"id": id_, "rev": rev} for id_, rev in sorted(claims)]).decode()
        while True:
            try:
                rows = await self._link.fetch(self._sql["claiming/release"].bind(worker=self._worker, claims=listed))
                count: int = rows[0][0]
                return count
            except LinkClosed:
                raise
            except LinkDown:
                continue  # guarded by rev: sending it twice does no harm

    def forget(self, held: Held) -> None:
        """The row is not this worker's any more."""
        if self._held.get(held.id) is held:
            del self._held[held.id]

    def check_soon(self) -> None:
        """Has the next pass check."""
        self._check_at = 0.0
        self.wake()

    async def check(self) -> None:
        """Gives back rows that the table says are ours and that we don't hold: a claim whose answer was lost.

        On the claims' own connection, so that no claim of ours is under way.
        """
        # Both set before the question: what goes wrong while it is under way is for another look.
        self.looks += 1
        self._check_at = time.monotonic() + self._check_interval
        try:
            rows = await self._link.fetch(self._sql["claiming/mine"].bind(worker=self._worker))
            strays = self.lost([(id_, rev) for id_, rev in rows if not self._is_held(id_, rev)])
            # (One that has ended since the question was asked is not there any more.)
            if strays and (count := await self.release(strays)):
                log.warning("%d claims whose answer was lost have gone back to their queues", count)
        except BaseException:
            self._check_at = 0.0
            raise

    def _is_held(self, id_: int, rev: int) -> bool:
        held = self._held.get(id_)
        # One behind: a commit that keeps the claim is there, and its answer is on the way.
        return held is not None and held.rev in (rev, rev - 1)

    def _sleep(self, now: float) -> float:
        until = self._check_at
        for queue in self._queues:
            if queue.empty:
                until = min(until, queue.look_at)
            if queue.buffer:
                until = min(until, now + STUCK_SECONDS)
        return max(until - now, HELD_UP_SECONDS if self.held_up else 0.001)


def _shares(queue: LocalQueue, room: int) -> list[tuple[int, int, bool]]:
    """The lanes of a queue to claim from: for each how many rows, and whether it is not to be merged with the others.

    Merging counts rows that are locked, so these could take the room from other lanes' rows. What was left of an
    earlier claim is therefore claimed lane by lane, in turn where there is not room for all.
    """
    if len(queue.lanes) == 1 or not queue.misses:
        return [(lane, room, len(queue.lanes) == 1) for lane in queue.lanes]
    first = queue.misses % len(queue.left)
    lanes = (queue.left[first:] + queue.left[:first])[:room]
    return [(lane, room // len(lanes), True) for lane in lanes]


def _urgency(held: Held) -> Any:
    return (held.priority, held.due_at, held.id)
