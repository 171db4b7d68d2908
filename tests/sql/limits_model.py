"""What limits should do, in plain Python: rows, buckets, and the rules that every look at lines keeps."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from copy import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gen_durable.limits import name_of_line
from gen_durable.status import Status

__all__ = ["AMOUNT", "PER", "Dump", "LimitsModel", "Line", "LiveRow", "Row", "looked_at", "nothing_forgotten", "rest"]

AMOUNT, PER = 1.0, 3600.0  # of every rate: what time passes in a test adds no token
HOLDING = (Status.RUNNABLE, Status.EXECUTING)
SLACK = 0.05  # of a token


class LiveRow(NamedTuple):
    """A row as the table has it; what the model says of it, and what only the table knows."""

    id: int
    status: int
    worker: int | None
    rev: int
    crashes: int
    gate: str | None
    own: str | None
    rate: str | None
    weight: int | None
    line: str | None
    priority: int
    due: float

    @property
    def urgency(self) -> tuple[int, float, int]:
        return self.priority, self.due, self.id


class Line(NamedTuple):
    """A row of ``lines``; ``wake`` in seconds from now."""

    tokens: float | None
    wake: float | None


class Dump(NamedTuple):
    """The tables at one moment."""

    rows: dict[int, LiveRow]
    lines: dict[str, Line]
    knocks: set[str]


@dataclass
class Row:
    """An instance, from its insertion until the end of the test."""

    id: int
    gate: str | None = None
    own: str | None = None
    rate: str | None = None
    weight: int | None = None
    priority: int = 0
    key: str | None = None
    status: int = Status.RUNNABLE
    worker: int | None = None
    rev: int = 0
    crashes: int = 0
    line: str | None = None
    was_parked: bool = False

    def __post_init__(self) -> None:
        self.home()

    def home(self) -> None:
        self.line = self.gate or self.rate

    @property
    def live(self) -> bool:
        return self.status < Status.DONE

    @property
    def holds(self) -> bool:
        return self.status in HOLDING

    def due(self) -> None:
        self.worker = None
        self.status = Status.RUNNABLE if self.line is None else Status.BLOCKED

    def limits(self, gate: str | None, rate: str | None, weight: int | None) -> None:
        self.gate, self.rate, self.weight = gate, rate, weight
        self.home()

    def same(self, found: LiveRow) -> bool:
        mine = (
            self.status, self.worker, self.rev, self.crashes, self.gate, self.own, self.rate, self.weight, self.line,
            self.priority,
        )  # fmt: skip
        return mine == found[1:11]


@dataclass
class Bucket:
    """``tokens`` as the table should have it (None: full); ``allowance`` is what a bucket by the book would give."""

    burst: float
    tokens: float | None = None
    before: float = 0.0  # tokens of what was runnable at the last look
    allowance: float = 0.0


@dataclass
class LimitsModel:
    """All rows and buckets; the methods are what the statements do."""

    rows: dict[int, Row] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)  # by the name of a key
    bursts: dict[str, float] = field(default_factory=dict)  # by the name of a rate
    buckets: dict[str, Bucket] = field(default_factory=dict)  # by line

    def live(self, *statuses: int) -> list[Row]:
        return [row for row in self.rows.values() if row.live and (not statuses or row.status in statuses)]

    def room(self, gate: str) -> int:
        return self.slots.get(name_of_line(gate), 1) - self.holders(gate)

    def holders(self, gate: str) -> int:
        return sum(row.holds for row in self.rows.values() if row.gate == gate)

    def bucket(self, line: str) -> Bucket:
        burst = self.bursts[name_of_line(line)]
        return self.buckets.setdefault(line, Bucket(burst, allowance=burst))

    def charge(self, row: Row | LiveRow) -> float:
        assert row.rate is not None
        return min(row.weight or 1, self.bursts[name_of_line(row.rate)])

    def drawn(self, line: str) -> float:
        return sum(self.charge(row) for row in self.live(Status.RUNNABLE) if row.rate == line)

    def tokens(self, line: str) -> float:
        """How many a look would find."""
        bucket = self.bucket(line)
        # It fills behind what was runnable at the last look only from the look that finds that claimed.
        most = bucket.burst - max(self.drawn(line), bucket.before)
        return most if bucket.tokens is None else min(most, bucket.tokens)

    def refill(self, line: str, tokens: float) -> None:
        bucket = self.bucket(line)
        bucket.allowance = min(bucket.burst, bucket.allowance + tokens)
        if bucket.tokens is not None:
            bucket.tokens += tokens

    def set_burst(self, name: str, burst: float) -> None:
        self.bursts[name] = burst
        for line, bucket in self.buckets.items():
            if name_of_line(line) == name:
                bucket.allowance = min(bucket.allowance + max(burst - bucket.burst, 0.0), burst)
                bucket.burst = burst

    # What a look has done -------------------------------------------------------------------------

    def looked(self, dump: Dump, looked: Collection[str], locked: Collection[int] = ()) -> list[Row]:
        """Takes over what a look at lines has done, when it was right; answers with what was brought forward."""
        waited = {row.id: copy(row) for row in self.live(Status.BLOCKED)}
        before = {gate: self.holders(gate) for gate in {row.gate for row in self.rows.values()} if gate is not None}
        tokens = {line: self.tokens(line) for line in looked if line[0] == "r"}
        admitted = []
        for id_, old in waited.items():
            found, row = dump.rows[id_], self.rows[id_]
            if found.status in HOLDING:
                assert old.line in looked, f"{id_} came out of {old.line}, at which nobody looked"
                assert id_ not in locked
                row.status, row.worker, row.rev = found.status, found.worker, found.rev
                row.home()
                admitted.append(row)
            elif found.line != old.line:
                assert {found.line, old.line} == {row.gate, row.rate}
                row.line = found.line
        for gate, count in before.items():
            assert self.holders(gate) <= max(count, self.slots.get(name_of_line(gate), 1)), f"{gate}: over its limit"
        for line, there in tokens.items():
            self._drew(line, there, [row for row in admitted if row.rate == line])
        assert all(row.rate is None or row.rate in tokens for row in admitted), "tokens that nobody has counted"
        for line in looked:
            self._in_order(line, dump, waited, locked)
        return admitted

    def _drew(self, line: str, there: float, admitted: list[Row]) -> None:
        spent = sum(self.charge(row) for row in admitted)
        bucket = self.bucket(line)
        assert spent <= max(there, 0) + SLACK, f"{line}: {spent} of {there} tokens"
        bucket.tokens = there - spent
        bucket.allowance -= spent
        bucket.before = self.drawn(line)
        assert bucket.allowance > -SLACK, f"{line}: more than its rate and its burst"

    def _in_order(self, line: str, dump: Dump, waited: dict[int, Row], locked: Collection[int]) -> None:
        """R22: nobody is passed by in a line, but who is just locked, or can't go for want of the other limit."""
        waits = [row for row in waited.values() if row.line == line and row.id not in locked]
        if line[0] == "c":
            waits = [row for row in waits if row.rate is None]
        went = [dump.rows[row.id].urgency for row in waits if dump.rows[row.id].status in HOLDING]
        left = [
            dump.rows[row.id].urgency for row in waits if dump.rows[row.id].line == line and row.id not in _ids(went)
        ]
        assert not went or not left or max(went) < min(left), f"{line}: {min(left)} was passed by"

    # What always holds ----------------------------------------------------------------------------

    def equal(self, dump: Dump) -> None:
        """The tables hold what the model says."""
        assert set(dump.rows) == {row.id for row in self.live()}
        for row in self.live():
            assert row.same(dump.rows[row.id]), f"{row} is {dump.rows[row.id]}"
        for line, bucket in self.buckets.items():
            found = dump.lines.get(line, Line(None, None)).tokens
            if bucket.tokens is None or found is None:
                assert bucket.tokens == found, line
            else:
                assert abs(bucket.tokens - found) < SLACK, f"{line} has {found} tokens, not {bucket.tokens}"


def _ids(urgencies: Iterable[tuple[int, float, int]]) -> set[int]:
    return {id_ for _, _, id_ in urgencies}


def looked_at(lines: dict[str, Any]) -> set[str]:
    """The lines of which a look has reported."""
    return set(lines)


def nothing_forgotten(model: LimitsModel, dump: Dump) -> None:
    """R22, R23: of each line in which rows wait, somebody will look again, or nothing would come of it."""
    waiting = {row.line for row in model.live(Status.BLOCKED)}
    for line in waiting:
        assert line is not None
        known = dump.lines.get(line)
        if line in dump.knocks or (known is not None and known.wake is not None):
            continue
        assert line[0] == "c", f"{line}: nobody will look at it again"
        assert model.room(line) <= 0 or not _stranded(model, line), (
            f"{line} has room, and nobody will look: {[row for row in model.live() if row.gate == line]}"
        )


def _stranded(model: LimitsModel, gate: str) -> list[Row]:
    """What waits in a key's line and could go on: not behind one of the same key that waits for the same tokens."""
    there = {(row.gate, row.rate) for row in model.live(Status.BLOCKED) if row.line == row.rate}
    return [row for row in model.live(Status.BLOCKED) if row.line == gate and (gate, row.rate) not in there]


def rest(model: LimitsModel, dump: Dump) -> None:
    """No stall: when no look brings anything any more, nothing waits that fits."""
    for row in model.live(Status.BLOCKED):
        if row.line == row.gate and model.room(row.gate) > 0:
            assert row not in _stranded(model, row.gate), f"{row} waits, and its key has room"
    for line in {row.rate for row in model.live(Status.BLOCKED) if row.line == row.rate}:
        assert line is not None
        head = min((dump.rows[row.id] for row in model.live(Status.BLOCKED) if row.line == line), key=_urgency)
        assert model.charge(head) > model.tokens(line) - SLACK, f"{head} waits, and there are tokens"


def _urgency(row: LiveRow) -> tuple[int, float, int]:
    return row.urgency
