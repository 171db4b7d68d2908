"""Rows that this process's own calls bring to its worker as claims: nobody has to claim them.

An insert's rows are born claimed, a signal's row is woken as a claim.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self

import msgspec

from gen_durable._runtime.claimer import Claim, Claimer
from gen_durable._runtime.held import Held, LocalQueue
from gen_durable._store.inserting import Born, NewInstance
from gen_durable._store.operation import Row

__all__ = ["Birth", "Births"]

# Seconds that places are kept: a call that waits for a lock longer than this holds up nobody. What it then brings may
# wait in the buffer for its turn.
LONGEST_KEPT = 0.1


class Birth:
    """One call that is under way, and the places that are kept for its rows; a context manager around it."""

    def __init__(self, births: Births, worker: int, places: dict[LocalQueue, int]) -> None:
        self.worker = worker
        self.lanes = [lane for queue in places for lane in queue.lanes]
        self.started: set[int] = set()  # ids of the rows that the worker has taken
        self.late: list[Claim] = []  # those that came when its life was over: the caller is to release them
        self._births = births
        self._places = places
        self._timer = asyncio.get_running_loop().call_later(LONGEST_KEPT, self._give_way)

    def pools(self) -> str:
        """The places as the statements take them: a JSON list of lane, pool and room."""
        pools = [
            {"lane": lane, "pool": pool, "room": room}
            for pool, (queue, room) in enumerate(self._places.items())
            for lane in queue.lanes
        ]
        return msgspec.json.encode(pools).decode()

    def born(self, rows: list[Born]) -> None:
        """Hands new rows to the worker: they are in the table, and its claims."""
        self.started.update(born.id for born in rows)
        if self._births.over:
            self.late += [(born.id, 0) for born in rows]
        else:
            self._put(self._births.take(rows))

    def claimed(self, rows: list[Row]) -> None:
        """Hands rows to the worker, as ``claim.sql`` gives them: they are its claims."""
        self.started.update(row[0] for row in rows)
        if self._births.over:
            self.late += [(row[0], row[1]) for row in rows]
        else:
            self._put(self._births.take_claimed(rows))

    def _put(self, got: dict[LocalQueue, list[Held]]) -> None:
        for queue, batch in got.items():
            kept = min(self._places.get(queue, 0), len(batch))
            self._places[queue] = self._places.get(queue, 0) - kept
            queue.expected -= kept
            queue.put(batch)
            if queue.paused or queue.crowded:
                self._births.look()  # to give back what can't be started

    def _give_way(self) -> None:
        for queue, count in self._places.items():
            queue.expected -= count
            if count and not queue.empty:
                queue.on_room()
        self._places.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        self._give_way()
        self._births.end(self, answered=kind is None)


class Family:
    """A birth in a transaction: what has come into being is the worker's once that has committed."""

    def __init__(self, birth: Birth, first: int) -> None:
        self.worker = birth.worker
        self.first = first
        self.birth = birth
        self._rows: list[Born] = []

    def born(self, rows: list[Born]) -> None:
        """Rows that are claims, should the transaction commit."""
        self._rows += rows

    def committed(self) -> None:
        """It has."""
        self.birth.born(self._rows)


class Births:
    """The calls under way whose rows are to come as claims of one worker's life."""

    def __init__(self, held: dict[int, Held], queues: Iterable[LocalQueue], changed: Callable[[], None]) -> None:
        self.over = True  # no life has begun, or it has ended
        self.under_way: set[Birth] = set()
        self.unsure = False  # an answer was lost, and nobody has looked since
        self._unsure_at = 0  # how many looks had begun when it was
        self._held = held
        self._queues = list(queues)
        self._changed = changed
        self._idle = asyncio.Event()
        self._idle.set()
        self._young: set[Claim] = set()  # strays that may belong to calls whose answer is on its way
        self._parents: set[Birth] = set()  # those calls, while they are under way
        self._worker = 0
        self._claimer: Claimer
        self._commits_lag: Callable[[], bool]

    def open(self, worker: int, claimer: Claimer, commits_lag: Callable[[], bool]) -> None:
        """A life begins."""
        self._worker, self._claimer, self._commits_lag = worker, claimer, commits_lag
        claimer.lost = self._lost
        self.over = False

    def expect(self, counts: Mapping[int, int]) -> Birth | None:
        """Keeps places for so many rows of each lane; None where a claim would not take them all, and at once."""
        if not self._ready:
            return None
        places: dict[LocalQueue, int] = {}
        for lane, count in counts.items():
            if lane not in self._claimer.specs:
                return None
            queue = self._claimer.specs[lane][1]
            places[queue] = places.get(queue, 0) + count
        if not all(_has_room(queue, count) for queue, count in places.items()):
            return None
        return self._begin(places)

    def expect_family(self, children: Sequence[NewInstance]) -> Family | None:
        """Keeps places for the first of a spawn's children; None where a claim would not take them at once."""
        if not children or not self._ready or (lane := children[0].lane) not in self._claimer.specs:
            return None
        queue = self._claimer.specs[lane][1]
        room = queue.concurrency - queue.load
        count = 0
        for child in children[: max(room, 0)]:
            if child.lane != lane or child.key or child.delay or child.at is not None or child.limited:
                break
            count += 1
        if not count or not _has_room(queue, count):
            return None
        return Family(self._begin({queue: count}), count)

    def expect_one(self) -> Birth | None:
        """Keeps a place for a row of any lane: one in each queue that has room; None where there is none."""
        if not self._ready:
            return None
        places = {queue: 1 for queue in self._queues if queue.lanes and _has_room(queue, 1)}
        return self._begin(places) if places else None

    def expect_all(self, most: int | None = None) -> Birth | None:
        """Keeps every place (``most``: of a queue), for rows that their limits let go; None where there is none.

        Rows whose turn in a line has come go on beside what is just announced or claimed (of which there is little, or
        else the last claim had come back full), and leave it half of the places: if they waited for its claim, they
        would be claimed too, and so would all that follow them.
        """
        if not self._works:
            return None
        places = {}
        for queue in self._queues:
            calm = queue.empty and not self._claimer.claiming
            if queue.lanes and _is_open(queue) and not queue.backlog and (calm or not queue.punctual):
                free = queue.concurrency - queue.load
                free = free if calm else free // 2
                places[queue] = free if most is None else min(free, most)
        places = {queue: count for queue, count in places.items() if count > 0}
        return self._begin(places) if places else None

    @property
    def _works(self) -> bool:
        claimer = self._claimer
        return not (self.over or claimer.failing or claimer.closing or self._commits_lag())

    @property
    def _ready(self) -> bool:
        """Whether nothing is just being claimed that a row which comes another way would pass by."""
        return self._works and not self._claimer.claiming

    def _begin(self, places: dict[LocalQueue, int]) -> Birth:
        for queue, count in places.items():
            queue.expected += count
        birth = Birth(self, self._worker, places)
        self.under_way.add(birth)
        self._idle.clear()
        return birth

    def take(self, rows: list[Born]) -> dict[LocalQueue, list[Held]]:
        """Makes claims of rows, the most urgent of each queue first."""
        now = time.monotonic()
        got: dict[LocalQueue, list[Held]] = {}
        for id_, row, at in rows:
            if self._claimer.was_cancelled(id_, 0):
                continue
            spec, queue = self._claimer.specs[row.lane]
            held = Held(
                id_, 0, row.lane, row.step, bytes(row.state), 0, 0, row.priority, row.key, at, at, spec, queue, now,
                row.parent_id, own_gate=row.own_gate,
            )  # fmt: skip
            self._held[id_] = held
            got.setdefault(queue, []).append(held)
        for batch in got.values():
            batch.sort(key=lambda held: (held.priority, held.id))
        self._changed()
        return got

    def take_claimed(self, rows: list[Row]) -> dict[LocalQueue, list[Held]]:
        """Makes claims of rows."""
        got = self._claimer.deal(rows, time.monotonic(), [])
        self._changed()
        return got

    def look(self) -> None:
        """Has the claimer look after what is buffered."""
        self._claimer.wake()

    def end(self, birth: Birth, *, answered: bool) -> None:
        """A call has returned, or failed: then its rows may be there all the same."""
        self.under_way.discard(birth)
        if not self.under_way:
            self._idle.set()
        doubted = birth in self._parents
        self._parents.discard(birth)
        if not answered:
            self.unsure, self._unsure_at = True, self._claimer.looks
        if not self.over and (not answered or (doubted and not self._parents)):
            self._claimer.check_soon()
        self._changed()

    async def wait_over(self) -> None:
        """Waits until no call is under way."""
        await self._idle.wait()

    def _lost(self, strays: list[Claim]) -> list[Claim]:
        """Which strays are nobody's for sure.

        One that is seen while calls are under way may be theirs; it is lost when it is still a stray after all of those
        have ended.
        """
        known = set() if self._parents else self._young
        lost = [claim for claim in strays if not self.under_way or claim in known]
        if not self._parents:  # else the answer to an earlier look is still to come
            self._young = set(strays) - set(lost)
            self._parents = set(self.under_way) if self._young else set()
        if not self.under_way and self._unsure_at < self._claimer.looks:
            self.unsure = False
        return lost


def _has_room(queue: LocalQueue, count: int) -> bool:
    """Whether a queue would start so many rows at once.

    Nothing that waits may be passed by: so not while anything is announced. (What is buffered has places of its own,
    and starts first.)
    """
    return _is_open(queue) and queue.empty and queue.load + count <= queue.concurrency


def _is_open(queue: LocalQueue) -> bool:
    return not (queue.closed or queue.paused or queue.capped)
