"""Commits outcomes in groups: what has collected goes as soon as the previous group has returned."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg

from gen_durable._runtime.aside import Aside
from gen_durable._runtime.committer import LONGEST_PAUSE, Committer, Entry, Fence, Settled, fence
from gen_durable._runtime.held import Held
from gen_durable._runtime.link import Link, LinkClosed, LinkDown
from gen_durable._runtime.record import Record, error_json
from gen_durable.errors import DuplicateInstance, InvalidState

__all__ = ["Flusher"]

log = logging.getLogger("gen_durable")

PATIENCE = 0.25  # seconds that a group waits for a lock; then the outcomes whose rows are locked are set aside
LOCKED_TRIES = 4  # in which nobody was seen to have a row locked; then it is a trouble of the database's
BATCH = 1000
BATCH_BYTES = 4_000_000
WORTHWHILE = 16  # outcomes for which running steps give way to their commit
UNNAMED = 2  # times that a group is sent again as it is when a check without a name refuses it: a trigger's may stay
FAMILY = 2000  # children that are inserted in one transaction, unless one outcome has more
_REFUSALS = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.StatementTooComplex,  # nested too deep
)


@dataclass(eq=False, slots=True)
class Way:
    """One connection for commits, and what becomes of them there."""

    link: Link
    more: asyncio.Event = field(default_factory=asyncio.Event)  # something may wait for it
    sending: bool = False
    failing: bool = False  # the database refuses commits for a reason that is not an outcome's


class Flusher:
    """Sends outcomes. No timer: on an idle system a lone outcome goes at once, under load groups grow by themselves.

    The main link serves all outcomes but those that insert children, whose transactions may be long: they have the
    second one. It serves outcomes that free slots too, when the main one is busy: the looks at their lines take the
    server longer than the client, and two sessions do them at once.

    Outcomes whose rows somebody has locked for long are set aside: the links are to have ``PATIENCE`` with locks.
    """

    def __init__(
        self,
        link: Link,
        second: Link,
        committer: Committer,
        settled: Settled,
        keep: Callable[[Held], float],
    ) -> None:
        self._main, self._second = Way(link), Way(second)
        self._committer = committer
        self._settled = settled
        self._keep = keep
        self._plain: list[Entry] = []
        self._gated: list[Entry] = []
        self._families: list[Entry] = []
        self._aside = Aside(lambda entries: committer.busy(link, entries), self._again)
        self._doubted: set[Fence] = set()  # outcomes that were sent without an answer, and are set aside
        self._idle = asyncio.Event()
        self._idle.set()
        self._most = BATCH
        self._refused_once: set[Fence] = set()

    @property
    def failing(self) -> bool:
        """Whether the database refuses commits, for a reason that is not an outcome's."""
        return self._main.failing or self._second.failing

    @property
    def waiting(self) -> int:
        """How many outcomes wait for the next group."""
        return len(self._plain) + len(self._gated) + len(self._families) + self.aside

    @property
    def aside(self) -> int:
        """How many of them are set aside."""
        return len(self._aside.entries)

    @property
    def _busy(self) -> bool:
        return self._main.sending or self._second.sending

    def wants_turn(self, left: int) -> bool:
        """Whether nothing is on its way, and a group is there that is as large as what is left to be run meanwhile.

        (While a group is on its way, running steps make the next one as large as they can.)
        """
        return not self._busy and len(self._plain) + len(self._gated) >= max(left, WORTHWHILE)

    def add(self, held: Held, record: Record) -> None:
        """Takes an outcome for the next group."""
        if held.spawning:
            self._families.append((held, record))
        else:
            (self._plain if held.gate is None else self._gated).append((held, record))
            self._main.more.set()
        if held.spawning or held.gate is not None:
            self._second.more.set()
        self._idle.clear()

    def _again(self, entries: list[Entry]) -> None:
        for held, record in entries:
            self.add(held, record)

    async def wait_idle(self) -> None:
        """Waits until everything that was added is committed."""
        await self._idle.wait()

    async def run(self) -> None:
        """The loops; they run until this is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve(self._main, self._next_batch), name="gen_durable flusher")
            group.create_task(self._aside.run(), name="gen_durable locked outcomes")
            group.create_task(self._serve(self._second, self._next_second), name="gen_durable second flusher")

    async def flush(self) -> None:
        """Commits everything that was added, over the main link."""
        while True:
            await self._send_all(self._main, lambda: self._next_batch() or self._next_second())
            if not self._aside.entries:
                return
            await self._aside.look()

    async def _serve(self, way: Way, next_batch: Callable[[], list[Entry]]) -> None:
        with contextlib.suppress(LinkClosed):  # then these claims are others', or handed back
            while True:
                await way.more.wait()
                await self._send_all(way, next_batch)

    async def _send_all(self, way: Way, next_batch: Callable[[], list[Entry]]) -> None:
        way.more.clear()
        way.sending = True
        try:
            while batch := next_batch():
                await self._commit(way, batch)
        finally:
            way.sending = False
        if not self._busy and not self.waiting:
            self._idle.set()

    def _next_batch(self) -> list[Entry]:
        """What waits for the main link: as many outcomes as go into a group."""
        batch = _cut([], self._plain, self._most)
        return _in_order(_cut(batch, self._gated, self._most))

    def _next_second(self) -> list[Entry]:
        """What waits for the second: outcomes that free slots, else those that insert children."""
        return _in_order(_cut([], self._gated, self._most) or _cut_families(self._families))

    async def _commit(self, way: Way, batch: list[Entry], *, in_doubt: bool = False) -> None:
        """Commits a group, for as long as it takes; one that the database refuses is split to find the bad outcome."""
        pause = 0.05
        unnamed = tries = 0
        if self._doubted:
            in_doubt = in_doubt or any(fence(entry) in self._doubted for entry in batch)
            self._doubted.difference_update(map(fence, batch))
        wake = self._settled.wake_list(batch)
        while True:
            started = time.monotonic()
            try:
                committed = await self._committer.send(way.link, batch, wake)
                break
            except DuplicateInstance as error:
                if len(batch) > 1:
                    await self._halves(way, batch, in_doubt=in_doubt)
                else:
                    self._settled.refused(batch[0][0], error)
                return
            except LinkClosed:
                raise
            except LinkDown:
                # Sent, and no answer: it may be there or not. Sending it again does no harm, because the fence refuses
                # what is there already; what is refused now is looked up. In halves, should it have been too much.
                in_doubt = True
                self._most = max(1, len(batch) // 2)
                if len(batch) > 1:
                    await self._halves(way, batch, in_doubt=True)
                    return
            except psycopg.errors.LockNotAvailable as error:
                size = len(batch)
                batch = await self._without_locked(way, batch, in_doubt=in_doubt)
                if not batch:
                    way.failing = False
                    return
                tries += len(batch) == size
                if tries >= LOCKED_TRIES and not way.failing:  # it is no row's lock: all of the table's, perhaps
                    way.failing = True
                    log.warning("commit of %d outcomes: %s; trying again", size, str(error).strip())
            except psycopg.Error as error:
                if wake and isinstance(error, psycopg.errors.ProgramLimitExceeded):
                    wake = []  # the server's queue of notifications is full, perhaps: that is no outcome's fault
                elif _unnamed_check(error) and unnamed < UNNAMED:
                    unnamed += 1  # a terminal row was bound for the default partition when its day's was attached
                elif isinstance(error, _REFUSALS) and len(batch) > 1:
                    await self._halves(way, batch, in_doubt=in_doubt)
                    return
                elif isinstance(error, _REFUSALS):
                    way.failing = False  # the fault is this outcome's
                    if not self._refused(batch[0], error):
                        return
                else:
                    way.failing = True
                    log.warning("commit of %d outcomes: %s; trying again", len(batch), str(error).strip())
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, LONGEST_PAUSE)
        way.failing = False
        self._most = min(BATCH, self._most * 2)
        missing = [entry for entry in batch if fence(entry) not in committed]
        if missing and in_doubt:
            committed |= await self._committer.look_up(missing)
        stale = [entry for entry in batch if fence(entry) not in committed]
        self._committer.account(len(batch) - len(stale), stale, time.monotonic() - started)
        for entry in batch:
            if fence(entry) in committed:
                self._refused_once.discard(fence(entry))
                self._committer.settle(*entry)
            else:
                self._settled.left(entry[0], None)

    async def _without_locked(self, way: Way, batch: list[Entry], *, in_doubt: bool) -> list[Entry]:
        """Sets the outcomes of a group aside whose rows somebody has locked; what is left of it is to be sent again.

        A family may wait for a key that another transaction is just inserting, too: that is nobody's row yet, and the
        families go in halves to find the one that does.
        """
        try:
            locked = await self._committer.busy(way.link, batch)
        except (LinkDown, psycopg.Error):
            return batch  # sending it again says what is the matter
        if not locked and any(held.spawning for held, _ in batch):
            if len(batch) > 1:
                await self._halves(way, batch, in_doubt=in_doubt)
                return []
            locked = batch
        if in_doubt:
            self._doubted.update(map(fence, locked))
        self._aside.put(locked)
        there = {id(entry) for entry in locked}
        return [entry for entry in batch if id(entry) not in there]

    async def _halves(self, way: Way, batch: list[Entry], *, in_doubt: bool) -> None:
        middle = len(batch) // 2
        await self._commit(way, batch[:middle], in_doubt=in_doubt)
        await self._commit(way, batch[middle:], in_doubt=in_doubt)

    def _refused(self, entry: Entry, error: psycopg.Error) -> bool:
        """Makes an outcome that Postgres refuses a failure of its instance; answers whether to send that."""
        held, record = entry
        reason = f"Postgres refused the state or outcome of step {held.step!r}: {str(error).strip()}"
        if fence(entry) in self._refused_once:
            self._refused_once.discard(fence(entry))
            # That too: nothing more can be said. The claim is let go, and comes back to be run again.
            log.error("instance %d: %s", held.id, reason)
            self._settled.left(held, None)
            return False
        self._refused_once.add(fence(entry))
        held.spawning = None
        record.fail(error_json(InvalidState(reason)), self._keep(held))
        return True


def _unnamed_check(error: psycopg.Error) -> bool:
    return isinstance(error, psycopg.errors.CheckViolation) and error.diag.constraint_name is None


def _in_order(batch: list[Entry]) -> list[Entry]:
    batch.sort(key=lambda entry: entry[0].id)  # rows are locked in the order of ids
    return batch


def _cut(batch: list[Entry], pending: list[Entry], most: int) -> list[Entry]:
    """Adds as many as fit to a group, by number and by bytes: it must get through within the link's deadline."""
    size = sum(map(_bytes, batch))
    count = 0
    for entry in pending[: most - len(batch)]:
        size += _bytes(entry)
        if (batch or count) and size > BATCH_BYTES:
            break
        count += 1
    batch += pending[:count]
    del pending[:count]
    return batch


def _bytes(entry: Entry) -> int:
    return len(entry[1].state or b"") + len(entry[1].result or b"")


def _cut_families(pending: list[Entry]) -> list[Entry]:
    """A group of outcomes with some thousand children at most, or a single outcome."""
    size = count = 0
    for held, _ in pending:
        size += len(held.spawning or ())
        if count and size > FAMILY:
            break
        count += 1
    batch = pending[:count]
    del pending[:count]
    return batch
