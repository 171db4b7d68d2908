"""Commits outcomes in groups: what has collected goes as soon as the previous group has returned."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator

import psycopg

from gen_durable._runtime.committer import LONGEST_PAUSE, Committer, Entry, Fence, Settled, fence
from gen_durable._runtime.held import Held
from gen_durable._runtime.link import Link, LinkDown
from gen_durable._runtime.record import Record, error_json
from gen_durable.errors import DuplicateInstance, InvalidState

__all__ = ["Flusher"]

log = logging.getLogger("gen_durable")

BATCH = 1000
BATCH_BYTES = 4_000_000
WORTHWHILE = 16  # outcomes for which running steps give way to their commit
FAMILY = 2000  # children that are inserted in one transaction, unless one outcome has more
_REFUSALS = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.StatementTooComplex,  # nested too deep
)


class Flusher:
    """Sends outcomes. No timer: on an idle system a lone outcome goes at once, under load groups grow by themselves."""

    def __init__(
        self,
        link: Link,
        committer: Committer,
        settled: Settled,
        keep: Callable[[Held], float],
    ) -> None:
        self._link = link
        self._committer = committer
        self._settled = settled
        self._keep = keep
        self._pending: list[Entry] = []
        self._more = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._most = BATCH
        self._sending = False
        self._refused_once: set[Fence] = set()
        self.failing = False  # the database refuses commits for a reason that is not an outcome's

    @property
    def waiting(self) -> int:
        """How many outcomes wait for the next group."""
        return len(self._pending)

    def wants_turn(self, left: int) -> bool:
        """Whether a group is there to be sent, at least as large as what is left to be run meanwhile."""
        return not self._sending and len(self._pending) >= max(left, WORTHWHILE)

    def add(self, held: Held, record: Record) -> None:
        """Takes an outcome for the next group."""
        self._pending.append((held, record))
        self._more.set()
        self._idle.clear()

    async def wait_idle(self) -> None:
        """Waits until everything that was added is committed."""
        await self._idle.wait()

    async def run(self) -> None:
        """The loop; runs until it is cancelled."""
        while True:
            await self._more.wait()
            await self.flush()

    async def flush(self) -> None:
        """Commits everything that was added."""
        self._more.clear()
        self._sending = True
        while self._pending:
            batch = self._next_batch()
            # Rows are locked in id order.
            batch.sort(key=lambda entry: entry[0].id)
            # The outcomes that insert children take several statements; the others need not wait for them.
            families = [entry for entry in batch if entry[0].spawning]
            if families:
                batch = [entry for entry in batch if not entry[0].spawning]
            if batch:
                await self._commit(batch)
            for family in _by_size(families):
                await self._commit(family)
        self._sending = False
        self._idle.set()

    def _next_batch(self) -> list[Entry]:
        """As many outcomes as fit, by number and by bytes: a group must get through within the link's deadline."""
        size = count = 0
        for _, record in self._pending[: self._most]:
            size += len(record.state or b"") + len(record.result or b"")
            if count and size > BATCH_BYTES:
                break
            count += 1
        batch = self._pending[:count]
        del self._pending[:count]
        return batch

    async def _commit(self, batch: list[Entry], *, in_doubt: bool = False) -> None:
        """Commits a group, for as long as it takes; one that the database refuses is split to find the bad outcome."""
        pause = 0.05
        wake = self._settled.wake_list(batch)
        while True:
            started = time.monotonic()
            try:
                committed = await self._committer.send(self._link, batch, wake)
                break
            except DuplicateInstance as error:
                if len(batch) > 1:
                    await self._halves(batch, in_doubt=in_doubt)
                else:
                    self._settled.refused(batch[0][0], error)
                return
            except LinkDown:
                # Sent, and no answer: it may be there or not. Sending it again does no harm, because the fence refuses
                # what is there already; what is refused now is looked up. In halves, should it have been too much.
                in_doubt = True
                self._most = max(1, len(batch) // 2)
                if len(batch) > 1:
                    await self._halves(batch, in_doubt=True)
                    return
            except psycopg.Error as error:
                if wake and isinstance(error, psycopg.errors.ProgramLimitExceeded):
                    wake = []  # the server's queue of notifications is full, perhaps: that is no outcome's fault
                elif isinstance(error, _REFUSALS) and len(batch) > 1:
                    await self._halves(batch, in_doubt=in_doubt)
                    return
                elif isinstance(error, _REFUSALS):
                    self.failing = False  # the fault is this outcome's
                    if not self._refused(batch[0], error):
                        return
                else:
                    self.failing = True
                    log.warning("commit of %d outcomes: %s; trying again", len(batch), str(error).strip())
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, LONGEST_PAUSE)
        self.failing = False
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

    async def _halves(self, batch: list[Entry], *, in_doubt: bool) -> None:
        middle = len(batch) // 2
        await self._commit(batch[:middle], in_doubt=in_doubt)
        await self._commit(batch[middle:], in_doubt=in_doubt)

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


def _by_size(families: list[Entry]) -> Iterator[list[Entry]]:
    """Groups of outcomes with children, each of some thousand children at most, or of a single outcome."""
    group: list[Entry] = []
    size = 0
    for entry in families:
        count = len(entry[0].spawning or ())
        if group and size + count > FAMILY:
            yield group
            group, size = [], 0
        group.append(entry)
        size += count
    if group:
        yield group
