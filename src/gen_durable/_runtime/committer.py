"""Sends outcomes over a connection, and settles what the answer says: for groups, and for a step's own transaction."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol, TypeVar

import msgspec
import psycopg

from gen_durable._runtime.admitter import Admitter
from gen_durable._runtime.births import Births, Family
from gen_durable._runtime.held import Held
from gen_durable._runtime.link import Link, LinkClosed, LinkDown
from gen_durable._runtime.record import END, ON, WAIT, Record, encode_records
from gen_durable._store.inserting import insert_all
from gen_durable._store.operation import Catalog, Operation, Request, Row
from gen_durable.errors import DuplicateInstance
from gen_durable.events import CommitEvent, Hooks, StaleEvent, emit
from gen_durable.status import Status, TransitionKind

__all__ = ["LONGEST_PAUSE", "Channel", "Committer", "Entry", "Fence", "Settled", "fence", "locked_first"]

log = logging.getLogger("gen_durable")

LONGEST_PAUSE = 5.0
KNOCKED = -3  # the mark of commit.sql's answer that counts the lines

T = TypeVar("T")

Entry = tuple[Held, Record]
Fence = tuple[int, int]  # id and the rev that the claim holds
_decode_fences = msgspec.json.Decoder(list[Fence]).decode


class Channel(Protocol):
    """What a commit is sent over: each call is a transaction that ends with its commit. A ``Link`` is one."""

    async def fetch(self, request: Request) -> list[Row]:
        """Runs one statement."""
        ...

    async def together(self, operation: Operation[T]) -> T:
        """Runs an operation."""
        ...

    async def at_once(self, requests: list[Request]) -> list[list[Row]]:
        """Runs statements that don't need each other's answers."""
        ...


class Settled(Protocol):
    """Who is told what became of a claim."""

    def goes_on(self, held: Held) -> None:
        """The commit is there and the claim stays: the next step may run."""

    def left(self, held: Held, record: Record | None) -> None:
        """The claim has ended: committed with this record, or taken away (None)."""

    def refused(self, held: Held, error: Exception) -> None:
        """Its outcome can't be committed, and nothing of it was: the claim stays, and another outcome will come."""

    def again(self, held: Held, delay: float) -> None:
        """Nothing of its transaction was committed, by no fault of the step: the claim stays, and it runs again."""

    def awake(self, lanes: set[int]) -> None:
        """A commit has woken rows of these lanes: a join has opened, or a signal was there already."""

    def knocked(self) -> None:
        """A commit has put rows into lines of limits."""

    def wake_list(self, batch: list[Entry]) -> list[str]:
        """The queues whose other workers are to be told about rows that go back."""
        ...


class Committer:
    """One way to commit, for all outcomes."""

    def __init__(
        self,
        link: Link,
        sql: Catalog,
        worker: int,
        settled: Settled,
        hooks: Hooks,
        admitter: Admitter | None = None,
        births: Births | None = None,
    ) -> None:
        self._link = link
        self._sql = sql
        self._worker = worker
        self._settled = settled
        self._hooks = hooks
        self._admitter = admitter
        self._births = births
        self.committed = 0
        self.stale = 0

    async def send(self, channel: Channel, batch: list[Entry], wake: list[str]) -> set[Fence]:
        """Commits a group over a channel; answers with the fences of what was committed.

        A group that is one outcome with a mark goes in its step's transaction, which fails when it can't be committed.

        Raises:
            DuplicateInstance: a child's key is taken.
            LinkDown, psycopg.Error: as the channel does.
        """
        gates = [held.gate for held, record in batch if held.gate is not None and _frees(record)]
        ends = all(_only_ends(record) for _, record in batch)
        children = any(held.parent_id is not None for held, _ in batch)
        if ends and not children:
            return await self._send_ends(channel, batch, gates)
        request = self._alone(*batch[0]) or self._request(batch, wake, ends=ends and not gates)
        families = bool(batch[0][0].spawning)
        if gates and batch[0][1].mark is not None:
            knock = self._sql["limiting/freed"].bind(lines=sorted(set(gates)))
            rows, _ = await self._all(channel, request, batch, knock)
            self._settled.knocked()
        elif gates and self._admitter is not None:
            with self._admitter.looking(len(gates)) as look:
                then = self._admitter.request(look, sorted(set(gates)))
                rows, look.rows = await self._all(channel, request, batch, then)
            await self._admitter.let_go(look)
        elif families:
            rows = await self._send_families(channel, request, batch)
        else:
            rows = await channel.fetch(request)
        if lanes := {lane for _, _, lane in rows if lane is not None}:
            self._settled.awake(lanes)
        if any(rev == KNOCKED for _, rev, _ in rows):
            self._settled.knocked()
        return {(id_, rev - 1) for id_, rev, _ in rows if rev >= 0}

    async def _send_ends(self, channel: Channel, batch: list[Entry], gates: list[str]) -> set[Fence]:
        """Commits ends that need no more than that; the slots that they free go to the next in their lines."""
        ends = self._sql["committing/end"]
        if gates and self._admitter is not None:
            with self._admitter.looking(len(gates)) as look:
                terms = look.terms | {"worker": self._worker}
                rows = look.rows = await channel.fetch(ends.bind(outcomes=_listed(batch), **terms))
            await self._admitter.let_go(look)
        else:
            request = ends.bind(worker=self._worker, outcomes=_listed(batch), pools=None, most=0, report=False)
            rows = await channel.fetch(request)
        ended = next((row[1] for row in rows if row[0] == "done"), None)
        return set(() if ended is None else _decode_fences(ended))

    def _request(self, batch: list[Entry], wake: list[str], *, ends: bool) -> Request:
        first = msgspec.json.encode(locked_first(batch)).decode()
        outcomes = _listed(batch)
        if ends:
            return self._sql["committing/end_joined"].bind(worker=self._worker, outcomes=outcomes, first=first)
        return self._sql["committing/commit"].bind(worker=self._worker, outcomes=outcomes, first=first, wake=wake)

    def _alone(self, held: Held, record: Record) -> Request | None:
        """The small statement for an outcome that goes alone and needs no more; None: it is ``commit.sql``'s."""
        if record.mark is None or held.parent_id is not None or held.waits is not None or record.limits:
            return None
        given = {
            "id": held.id, "rev": held.rev, "worker": self._worker, "mark": record.mark, "state": _text(record.state),
            "ran": record.ran, "tried": record.tried, "took": record.took,
        }  # fmt: skip
        if record.op == ON:
            error = None if record.error is None else msgspec.json.encode(record.error).decode()
            return self._sql["committing/go_on_alone"].bind(
                **given, step=record.step, error=error, kind=record.kind, history=record.history
            )
        plain = record.kind == TransitionKind.DONE and record.error is None and record.history == 1
        if record.op == END and plain and held.key is None:
            return self._sql["committing/end_alone"].bind(**given, result=_text(record.result), keep=record.keep)
        return None

    async def _all(
        self, channel: Channel, request: Request, batch: list[Entry], more: Request
    ) -> tuple[list[Row], list[Row]]:
        """The commit, its children where there are any, and one more statement behind it."""
        if batch[0][0].spawning:
            return await channel.together(self._with_look(request, batch, more))
        rows, answer = await channel.at_once([request, more])
        return rows, answer

    def _with_look(self, request: Request, batch: list[Entry], look: Request) -> Operation[tuple[list[Row], list[Row]]]:
        """The commit and, in its transaction, a look at the lines in which it frees slots."""
        rows = yield from self._with_children(request, batch)
        return rows, (yield look)

    async def _send_families(self, channel: Channel, request: Request, batch: list[Entry]) -> list[Row]:
        """The commit with its children; the first of these are claims of this worker where that would start them."""
        family = None
        if self._births is not None and batch[0][1].mark is None:
            family = self._births.expect_family(batch[0][0].spawning or ())
        if family is None:
            return await channel.together(self._with_children(request, batch))
        with family.birth as birth:
            rows = await channel.together(self._with_children(request, batch, family))
            family.committed()
        if self._admitter is not None:
            await self._admitter.give_back(birth.late)
        return rows

    def _with_children(
        self, request: Request, batch: list[Entry], family: Family | None = None
    ) -> Operation[list[Row]]:
        """The commit and, in its transaction, the children of the rows whose claim still held."""
        rows = yield request
        parked = {(id_, rev - 1) for id_, rev, _ in rows if rev >= 0}
        children = [child for entry in batch if fence(entry) in parked for child in entry[0].spawning or ()]
        if not children:
            return rows
        if family is not None and children[0] is not (batch[0][0].spawning or (None,))[0]:
            family = None  # the parent of those for which places are kept has lost its claim
        placed, _ = yield from insert_all(
            self._sql, children, together=True, birth=family, births=None if family is None else family.first
        )
        for place, child in zip(placed, children, strict=True):
            if place.duplicate:
                raise DuplicateInstance(child.key or "", place.id)
        return rows

    async def busy(self, link: Link, entries: list[Entry]) -> list[Entry]:
        """The outcomes whose rows, or whose parents' rows, somebody else has locked just now.

        Raises:
            LinkDown, psycopg.Error: as the link does.
        """
        ids = {held.id for held, _ in entries} | {held.parent_id for held, _ in entries if held.parent_id is not None}
        rows = await link.fetch(self._sql["committing/busy"].bind(ids=msgspec.json.encode(sorted(ids)).decode()))
        locked = {row[0] for row in rows}
        return [entry for entry in entries if entry[0].id in locked or entry[0].parent_id in locked]

    async def look_up(self, entries: list[Entry]) -> set[Fence]:
        """Which outcomes are there, of those whose first answer never came."""
        ids = msgspec.json.encode([held.id for held, _ in entries]).decode()
        places = {row[0]: row[1:] for row in await self._ask(self._sql["committing/locate"].bind(ids=ids))}
        there = {fence(entry) for entry in entries if self._is_there(places.get(entry[0].id), *entry)}
        # A row that went back may have been claimed again before we looked.
        back = [{"id": held.id, "rev": held.rev} for held, record in entries if record.op not in (ON, END)]
        if back:
            claims = msgspec.json.encode(back).decode()
            there.update(await self._ask(self._sql["committing/noted"].bind(worker=self._worker, claims=claims)))
        return there

    async def as_it_stands(self, held: Held, record: Record) -> bool:
        """Has an outcome say what the row that went on holds: it may be an earlier run's, whose answer never came.

        Answers whether the row still is this claim's.
        """
        rows = await self._ask(self._sql["committing/stands"].bind(id=held.id, rev=held.rev + 1, worker=self._worker))
        if not rows:
            return False
        step, state, record.gate, record.rate = rows[0]
        record.step, record.state, record.limits, held.values = step, msgspec.Raw(state), True, None
        return True

    async def still_ours(self, held: Held) -> bool:
        """Whether a row is as its claim has it."""
        rows = await self._ask(self._sql["committing/locate"].bind(ids=f"[{held.id}]"))
        return any(row[1:] == (held.rev, Status.EXECUTING, self._worker) for row in rows)

    async def _ask(self, question: Request) -> list[Row]:
        while True:
            try:
                return await self._link.fetch(question)
            except LinkClosed:
                raise
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

    def settle(self, held: Held, record: Record) -> None:
        """An outcome is there: who runs its instance is told."""
        if record.op != ON:
            self._settled.left(held, record)
            return
        held.rev += 1
        held.step = record.step or held.step
        held.attempt = held.crashes = 0
        held.reruns, held.doubt = 0, False
        held.chain_steps += 1
        if record.limits:
            held.gate, held.rate = record.gate, record.rate
        if record.state is not None:
            held.raw = bytes(record.state)
        if held.waits is not None:
            held.waits.progress()
        self._settled.goes_on(held)

    def account(self, committed: int, stale: list[Entry], took: float) -> None:
        """Counts a commit, and tells of it; and of the outcomes that were refused as stale."""
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


def _text(raw: msgspec.Raw | None) -> str | None:
    return None if raw is None else bytes(raw).decode()


def _listed(batch: list[Entry]) -> str:
    return encode_records([record for _, record in batch]).decode()


def _only_ends(record: Record) -> bool:
    """Whether an outcome ends its instance, and needs no history of its own."""
    return record.op == END and record.mark is None and record.history < 2 and (record.kind > 3 or not record.error)


def _frees(record: Record) -> bool:
    """Whether an outcome gives up its slot; what goes on keeps it, or goes on without any."""
    return record.op != ON or (record.limits is True and record.gate is None)


def fence(entry: Entry) -> Fence:
    """What its commit answers with."""
    return entry[0].id, entry[0].rev


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
