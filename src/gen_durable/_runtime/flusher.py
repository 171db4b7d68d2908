"""Commits outcomes in groups: what has collected goes as soon as the previous group has returned."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec
import psycopg

from gen_durable._runtime.admitter import Admitter
from gen_durable._runtime.held import Held
from gen_durable._runtime.link import Link, LinkDown
from gen_durable._runtime.record import END, ON, WAIT, Record, encode_records, error_json
from gen_durable._store.inserting import insert_all
from gen_durable._store.operation import Catalog, Operation, Request, Row
from gen_durable.errors import DuplicateInstance, InvalidState
from gen_durable.events import CommitEvent, Hooks, StaleEvent, emit
from gen_durable.status import Status

__all__ = ["Entry", "Flusher", "Settled", "locked_first"]

log = logging.getLogger("gen_durable")

BATCH = 1000
BATCH_BYTES = 4_000_000
WORTHWHILE = 16  # outcomes for which running steps give way to their commit
FAMILY = 2000  # children that are inserted in one transaction, unless one outcome has more
LONGEST_PAUSE = 5.0
KNOCKED = -3  # the mark of commit.sql's answer that counts the lines
_REFUSALS = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.StatementTooComplex,  # nested too deep
)

Entry = tuple[Held, Record]
_decode_ids = msgspec.json.Decoder(list[int]).decode

Fence = tuple[int, int]  # id and the rev that the claim holds


class Settled(Protocol):
    """Who is told what became of a claim."""

    def goes_on(self, held: Held) -> None:
        """The commit is there and the claim stays: the next step may run."""

    def left(self, held: Held, record: Record | None) -> None:
        """The claim has ended: committed with this record, or taken away (None)."""

    def refused(self, held: Held, error: DuplicateInstance) -> None:
        """Its outcome can't be committed, and nothing of it was: the claim stays, and another outcome will come."""

    def awake(self, lanes: set[int]) -> None:
        """A commit has woken rows of these lanes: a join has opened, or a signal was there already."""

    def knocked(self) -> None:
        """A commit has put rows into lines of limits."""

    def wake_list(self, batch: list[Entry]) -> list[str]:
        """The queues whose other workers are to be told about rows that go back."""
        ...


class Flusher:
    """Sends outcomes. No timer: on an idle system a lone outcome goes at once, under load groups grow by themselves."""

    def __init__(
        self,
        link: Link,
        sql: Catalog,
        worker: int,
        settled: Settled,
        hooks: Hooks,
        keep: Callable[[Held], float],
        admitter: Admitter | None = None,
    ) -> None:
        self._link = link
        self._sql = sql
        self._worker = worker
        self._settled = settled
        self._hooks = hooks
        self._keep = keep
        self._admitter = admitter
        self._pending: list[Entry] = []
        self._more = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._most = BATCH
        self._sending = False
        self._refused_once: set[Fence] = set()
        self.failing = False  # the database refuses commits for a reason that is not an outcome's
        self.committed = 0
        self.stale = 0

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
                committed = await self._send(batch, wake)
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
        missing = [entry for entry in batch if _fence(entry) not in committed]
        if missing and in_doubt:
            committed |= await self._look_up(missing)
        stale = [entry for entry in batch if _fence(entry) not in committed]
        self._account(len(batch) - len(stale), stale, time.monotonic() - started)
        for entry in batch:
            if _fence(entry) in committed:
                self._settle(*entry)
            else:
                self._settled.left(entry[0], None)

    async def _send(self, batch: list[Entry], wake: list[str]) -> set[Fence]:
        outcomes = encode_records([record for _, record in batch]).decode()
        gates = [held.gate for held, record in batch if held.gate is not None and _frees(record)]
        if all(_only_ends(*entry) for entry in batch):
            return await self._send_ends(batch, outcomes, gates)
        request = self._sql["committing/commit"].bind(
            worker=self._worker,
            outcomes=outcomes,
            first=msgspec.json.encode(locked_first(batch)).decode(),
            wake=wake,
        )
        if gates and self._admitter is not None:
            with self._admitter.looking(len(gates)) as look:
                then = self._admitter.request(look, sorted(set(gates)))
                if batch[0][0].spawning:
                    rows, look.rows = await self._link.together(self._with_look(request, batch, then))
                else:
                    rows, look.rows = await self._link.at_once([request, then])
            await self._admitter.let_go(look)
        elif batch[0][0].spawning:
            rows = await self._link.together(self._with_children(request, batch))
        else:
            rows = await self._link.fetch(request)
        if lanes := {lane for _, _, lane in rows if lane is not None}:
            self._settled.awake(lanes)
        if any(rev == KNOCKED for _, rev, _ in rows):
            self._settled.knocked()
        return {(id_, rev - 1) for id_, rev, _ in rows if rev >= 0}

    async def _send_ends(self, batch: list[Entry], outcomes: str, gates: list[str]) -> set[Fence]:
        """Commits ends that need no more than that; the slots that they free go to the next in their lines."""
        ends = self._sql["committing/end"]
        if gates and self._admitter is not None:
            with self._admitter.looking(len(gates)) as look:
                terms = look.terms | {"worker": self._worker}
                rows = look.rows = await self._link.fetch(ends.bind(outcomes=outcomes, **terms))
            await self._admitter.let_go(look)
        else:
            rows = await self._link.fetch(
                ends.bind(worker=self._worker, outcomes=outcomes, pools=None, most=0, report=False)
            )
        ended = next((row[1] for row in rows if row[0] == "done"), None)
        done = set(() if ended is None else _decode_ids(ended))
        return {_fence(entry) for entry in batch if entry[0].id in done}

    def _with_look(self, request: Request, batch: list[Entry], look: Request) -> Operation[tuple[list[Row], list[Row]]]:
        """The commit and, in its transaction, a look at the lines in which it frees slots."""
        rows = yield from self._with_children(request, batch)
        return rows, (yield look)

    def _with_children(self, request: Request, batch: list[Entry]) -> Operation[list[Row]]:
        """The commit and, in its transaction, the children of the rows whose claim still held."""
        rows = yield request
        parked = {(id_, rev - 1) for id_, rev, _ in rows if rev >= 0}
        children = [child for entry in batch if _fence(entry) in parked for child in entry[0].spawning or ()]
        if not children:
            return rows
        placed, _ = yield from insert_all(self._sql, children, together=True)
        for place, child in zip(placed, children, strict=True):
            if place.duplicate:
                raise DuplicateInstance(child.key or "", place.id)
        return rows

    async def _halves(self, batch: list[Entry], *, in_doubt: bool) -> None:
        middle = len(batch) // 2
        await self._commit(batch[:middle], in_doubt=in_doubt)
        await self._commit(batch[middle:], in_doubt=in_doubt)

    def _refused(self, entry: Entry, error: psycopg.Error) -> bool:
        """Makes an outcome that Postgres refuses a failure of its instance; answers whether to send that."""
        held, record = entry
        reason = f"Postgres refused the state or outcome of step {held.step!r}: {str(error).strip()}"
        if _fence(entry) in self._refused_once:
            self._refused_once.discard(_fence(entry))
            # That too: nothing more can be said. The claim is let go, and comes back to be run again.
            log.error("instance %d: %s", held.id, reason)
            self._settled.left(held, None)
            return False
        self._refused_once.add(_fence(entry))
        held.spawning = None
        record.fail(error_json(InvalidState(reason)), self._keep(held))
        return True

    async def _look_up(self, entries: list[Entry]) -> set[Fence]:
        """Which of the outcomes that were refused the second time are there from the first."""
        ids = msgspec.json.encode([held.id for held, _ in entries]).decode()
        places = {row[0]: row[1:] for row in await self._ask(self._sql["committing/locate"].bind(ids=ids))}
        there = {_fence(entry) for entry in entries if self._is_there(places.get(entry[0].id), *entry)}
        # A row that went back may have been claimed again before we looked.
        back = [{"id": held.id, "rev": held.rev} for held, record in entries if record.op not in (ON, END)]
        if back:
            claims = msgspec.json.encode(back).decode()
            there.update(await self._ask(self._sql["committing/noted"].bind(worker=self._worker, claims=claims)))
        return there

    async def _ask(self, question: Request) -> list[Row]:
        while True:
            try:
                return await self._link.fetch(question)
            except LinkDown:
                continue
            except psycopg.Error as error:
                log.warning("looking an outcome up: %s; trying again", str(error).strip())
                await asyncio.sleep(LONGEST_PAUSE)

    def _is_there(self, place: tuple[int, int, int | None] | None, held: Held, record: Record) -> bool:
        if place is None or place[0] != held.rev + 1:
            return False
        _, status, worker = place
        if record.op == ON:
            return status == Status.EXECUTING and worker == self._worker
        if record.op == END:
            return status == record.kind + 3 and worker == self._worker
        return status <= Status.SCHEDULED or Status.AWAITING_SIGNAL <= status <= Status.BLOCKED

    def _settle(self, held: Held, record: Record) -> None:
        self._refused_once.discard((held.id, held.rev))
        if record.op != ON:
            self._settled.left(held, record)
            return
        held.rev += 1
        held.step = record.step or held.step
        held.attempt = held.crashes = 0
        held.chain_steps += 1
        if record.limits:
            held.gate, held.rate = record.gate, record.rate
        if record.state is not None:
            held.raw = bytes(record.state)
        if held.waits is not None:
            held.waits.progress()
        self._settled.goes_on(held)

    def _account(self, committed: int, stale: list[Entry], took: float) -> None:
        self.committed += committed
        self.stale += len(stale)
        if self._hooks.commit:
            emit(self._hooks.commit, CommitEvent(size=committed, stale=len(stale), took=took))
        for held, _ in stale:
            if held.gone:  # cancelled: that was the point
                continue
            log.warning(
                "instance %d, step %r: its outcome was refused, because the claim had been taken away",
                held.id,
                held.step,
            )
            if self._hooks.stale:
                emit(self._hooks.stale, StaleEvent(id=held.id, machine=held.spec.name, step=held.step))


def _only_ends(held: Held, record: Record) -> bool:
    """Whether ``end.sql`` can commit an outcome: it ends the instance, counts no join, and has no history of its own."""
    return record.op == END and held.parent_id is None and record.history < 2 and (record.kind > 3 or not record.error)


def _frees(record: Record) -> bool:
    """Whether an outcome gives up its slot; what goes on keeps it, or goes on without any."""
    return record.op != ON or (record.limits is True and record.gate is None)


def _fence(entry: Entry) -> Fence:
    return entry[0].id, entry[0].rev


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


def locked_first(batch: list[Entry]) -> list[int]:
    """The rows in which two commits can meet, or a commit and a signal or cancel: see ``commit.sql``."""
    parents: set[int] = set()  # of children that end
    ends: set[int] = set()
    others: set[int] = set()
    for held, record in batch:
        if held.parent_id is not None and record.op == END:
            parents.add(held.parent_id)
            ends.add(held.id)
        elif held.parent_id is not None:
            others.add(held.id)  # a cancel may hold several children at once
        if record.op == WAIT or (held.waits is not None and held.waits.spawn is not None):
            others.add(held.id)
    # Ends are locked in the order of ids by the delete itself, and so after parents that all come before them.
    if ends and not others and max(parents) < min(ends):
        return sorted(parents)
    return sorted(parents | ends | others)
