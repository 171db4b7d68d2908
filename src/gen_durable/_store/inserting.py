"""Operations that bring instances into being."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from gen_durable._store.operation import Catalog, Operation

__all__ = [
    "Birth",
    "Born",
    "Inserting",
    "Lane",
    "LaneGone",
    "LaneKey",
    "NewInstance",
    "Placed",
    "PlainInstance",
    "ensure_lanes",
    "in_one",
    "insert_all",
    "replace_or_insert",
]

CHUNK_ROWS = 2000
CHUNK_BYTES = 4_000_000


class LaneKey(NamedTuple):
    """What a lane stands for: one machine version in one queue."""

    queue: str
    machine: str
    version: int


Lane: TypeAlias = int


class LaneGone(LookupError):
    """A lane is not there; the message is of one that was, and is no more."""

    def __init__(self) -> None:
        super().__init__("a lane is gone: the schema was dropped or replaced under this client; restart it")


class NewInstance(msgspec.Struct, omit_defaults=True):
    """A row to be; ``delay`` in seconds, ``at`` an aware datetime; ``gate`` and ``rate`` are lines of limits."""

    lane: Lane
    step: str
    state: msgspec.Raw
    key: str | None = None
    priority: int = 0
    delay: float | None = None
    at: datetime | None = None
    scope: int | None = None
    gate: str | None = None
    own_gate: str | None = None
    rate: str | None = None
    weight: int | None = None
    own_id: int | None = None
    parent_id: int | None = None
    parent_spawn: int | None = None

    @property
    def limited(self) -> bool:
        """Whether it waits in a line when it is due."""
        return self.gate is not None or self.rate is not None


class PlainInstance(NewInstance):
    """One at its machine's first step, with its machine's priority, due now, and neither a key nor a limit.

    So those of one lane differ only in their states.
    """


class Placed(NamedTuple):
    """What became of a row: its id, or that of the instance that holds its key."""

    id: int
    duplicate: bool


class Born(NamedTuple):
    """A row that is there and claimed already, under rev 0."""

    id: int
    row: NewInstance
    at: datetime  # when it was inserted, and due


class Birth(Protocol):
    """A worker's promise to start rows at once: they can be inserted as its claims."""

    worker: int

    def born(self, rows: list[Born]) -> None:
        """Rows that are the worker's now."""


class Inserting(NamedTuple):
    """What became of a call: a place for each row, and whether every statement told somebody."""

    placed: list[Placed]
    told: bool


_encode = msgspec.json.Encoder().encode


def ensure_lanes(
    sql: Catalog, wanted: Mapping[LaneKey, float | None], *, patience: float | None = None
) -> Operation[dict[LaneKey, Lane]]:
    """The numbers of lanes, making those that are missing; the values are retentions in seconds (None: for ever).

    With ``patience``, to be run in one transaction, it waits for locks no longer than so many seconds.
    """
    if patience is not None:
        yield sql["queues/patience"].bind(seconds=patience)
    listed = [
        {"queue": key.queue, "machine": key.machine, "version": key.version, "retention": wanted[key]}
        for key in sorted(wanted)
    ]
    rows = yield sql["queues/lanes"].bind(lanes=_encode(listed).decode())
    return {LaneKey(queue, machine, version): lane for queue, machine, version, lane, _ in rows}


def _chunks(
    rows: Iterable[tuple[int, NewInstance]], first: int | None = None
) -> Iterator[list[tuple[int, NewInstance]]]:
    chunk: list[tuple[int, NewInstance]] = []
    size = 0
    for place, row in rows:
        chunk.append((place, row))
        size += len(row.state) + 100
        if len(chunk) == CHUNK_ROWS or size > CHUNK_BYTES or (first is not None and place == first - 1):
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def in_one(rows: list[NewInstance]) -> bool:
    """Whether one statement inserts all of these rows, or none of them."""
    chunks = _chunks(enumerate(rows))
    next(chunks)
    return next(chunks, None) is None and len({row.lane for row in rows}) == 1


def insert_all(
    sql: Catalog,
    rows: list[NewInstance],
    *,
    notify: bool = True,
    soon: float = 60.0,
    together: bool = False,
    birth: Birth | None = None,
    births: int | None = None,
) -> Operation[Inserting]:
    """Inserts rows; answers for each, in the order given.

    A row whose key is held by a live instance is not inserted. Each statement inserts in key order, so that two callers
    with the same keys can't deadlock; where all statements of the call share a transaction (``together``), the rows go
    in key order over all of them, with ids in the order given all the same. With a ``birth``, rows that are due now
    come into being claimed where the database agrees (``births``: only the first so many), and are handed over as
    soon as their statement has answered: in a transaction it is for the birth to wait for the commit.
    """
    if rows and _alike(rows):
        if len(rows) == 1 and (birth is not None or not notify) and rows[0].parent_id is None:
            only = yield from _insert_one(sql, rows[0], birth)
            if only is not None:
                return Inserting([only], notify)
        return (yield from _insert_plain(sql, rows, notify=notify, birth=birth, births=births))
    told = notify
    placed: dict[int, Placed] = {}
    firsts: dict[str, int] = {}
    waiting: list[tuple[int, NewInstance]] = []
    repeats: list[tuple[int, int]] = []  # told apart here: the first may have ended before the second is inserted
    for place, row in enumerate(rows):
        first = place if row.key is None or row.scope == 0 else firsts.setdefault(row.key, place)
        if first == place:
            waiting.append((place, row))
        else:
            repeats.append((place, first))
    if together and any(row.key is not None for row in rows):
        drawn = yield sql["inserting/ids"].bind(count=len(rows))
        for row, (own_id,) in zip(rows, drawn, strict=True):
            row.own_id = own_id
        waiting.sort(key=lambda item: (item[1].key or "").encode())
    while waiting:
        again: list[tuple[int, NewInstance]] = []
        for chunk in _chunks(waiting, births):
            claims = birth is not None and (births is None or chunk[0][0] < births)
            answer = yield sql["inserting/insert"].bind(
                rows=_encode([row for _, row in chunk]).decode(),
                notify=notify,
                soon=soon,
                worker=birth.worker if birth is not None and claims else None,
            )
            if len(answer) != len(chunk):
                raise LaneGone
            taken: list[tuple[int, NewInstance]] = []
            told = told and bool(answer[0][2])
            born: list[Born] = []
            for at, new_id, _, born_at in answer:
                place, row = chunk[at - 1]
                if new_id is None:
                    taken.append((place, row))
                else:
                    placed[place] = Placed(new_id, duplicate=False)
                    if born_at is not None:
                        born.append(Born(new_id, row, born_at))
            if birth is not None and born:
                birth.born(born)
            if taken:
                held = yield sql["inserting/holders"].bind(keys=_encode([row.key for _, row in taken]).decode())
                holders: dict[str, int] = {row[0]: row[1] for row in held}
                for place, row in taken:
                    if row.key in holders:
                        placed[place] = Placed(holders[row.key], duplicate=True)
                    else:  # the holder ended in between: the key is free again
                        again.append((place, row))
        waiting = again
    placed |= {place: Placed(placed[first].id, duplicate=True) for place, first in repeats}
    return Inserting([placed[place] for place in range(len(rows))], told)


def _alike(rows: list[NewInstance]) -> bool:
    """Whether nothing but their states tells them apart."""
    first = rows[0]
    lane, parent_id, spawn = first.lane, first.parent_id, first.parent_spawn
    return all(
        type(row) is PlainInstance and row.lane == lane and row.parent_id == parent_id and row.parent_spawn == spawn
        for row in rows
    )


def _insert_one(sql: Catalog, row: NewInstance, birth: Birth | None) -> Operation[Placed | None]:
    """Inserts a plain row of which nobody is to be told; None: the database does not agree, see ``_insert_plain``."""
    given = {"lane": row.lane, "step": row.step, "priority": row.priority, "state": bytes(row.state).decode()}
    if birth is None:
        answer = yield sql["inserting/one"].bind(**given)
    else:
        answer = yield sql["inserting/one_born"].bind(**given, worker=birth.worker)
        birth.born([Born(new_id, row, at) for new_id, at in answer])
    return Placed(answer[0][0], False) if answer else None


def _insert_plain(
    sql: Catalog, rows: list[NewInstance], *, notify: bool, birth: Birth | None, births: int | None
) -> Operation[Inserting]:
    told = notify
    placed: list[Placed] = []
    first = rows[0]
    for chunk in _chunks(enumerate(rows), births):
        claims = birth is not None and (births is None or chunk[0][0] < births)
        answer = yield sql["inserting/plain"].bind(
            states=(b"[" + b",".join([row.state for _, row in chunk]) + b"]").decode(),
            lane=first.lane,
            step=first.step,
            priority=first.priority,
            parent_id=first.parent_id,
            parent_spawn=first.parent_spawn,
            notify=notify,
            worker=birth.worker if birth is not None and claims else None,
        )
        if len(answer) != len(chunk):
            raise LaneGone
        told = told and bool(answer[0][1])
        placed += [Placed(new_id, False) for new_id, _, _ in answer]
        if birth is not None and answer[0][2] is not None:
            birth.born([Born(new_id, row, at) for (_, row), (new_id, _, at) in zip(chunk, answer, strict=True)])
    return Inserting(placed, told)


def replace_or_insert(sql: Catalog, row: NewInstance, *, notify: bool = True, soon: float = 60.0) -> Operation[Placed]:
    """Inserts a row, or puts it in the place of one that waits under its key and was never claimed."""
    holder: int | None = None
    while True:
        answer = yield sql["inserting/replace"].bind(key=row.key, row=_encode([row]).decode(), notify=notify, soon=soon)
        if answer:
            return Placed(answer[0][0], duplicate=False)
        (place,) = (yield from insert_all(sql, [row], notify=notify, soon=soon)).placed
        # One that came only after the look for what can be replaced is looked at too.
        if not place.duplicate or place.id == holder:
            return place
        holder = place.id
