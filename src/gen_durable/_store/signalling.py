"""Operations that deliver signals."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from gen_durable._store.inserting import NewInstance, insert_all
from gen_durable._store.operation import Catalog, Operation, Row
from gen_durable.errors import DuplicateInstance

__all__ = ["Delivery", "NewSignal", "Place", "deliver", "deliver_or_insert"]

RESERVED = 9  # the status of a row that only holds the key of an instance which has ended


class NewSignal(NamedTuple):
    """A signal to be: its name, its payload as JSON, and what makes it the same as another."""

    name: str
    payload: str | None
    dedup: str | None


class Place(Protocol):
    """A worker's promise to start a row of one of these lanes at once: it can be woken as its claim."""

    worker: int
    lanes: list[int]

    def claimed(self, rows: list[Row]) -> None:
        """Rows that are the worker's now, as ``claim.sql`` gives them."""


class Delivery(NamedTuple):
    """What became of a signal.

    ``fresh``: it is in the inbox now, and was not there before; ``woken``: it woke the instance, which somebody is to
    claim; ``told``: other workers know of that; ``started``: the instance was inserted for it; ``knocked``: the woken
    one waits for its limit.
    """

    id: int
    queue: str | None
    fresh: bool
    woken: bool
    told: bool
    started: bool = False
    knocked: bool = False


def deliver(
    sql: Catalog, target: int | str, signal: NewSignal, *, notify: bool = True, place: Place | None = None
) -> Operation[Delivery | None]:
    """Puts a signal into the inbox of a live instance; None: there is none, and nothing was stored.

    With a ``place``, a row that it wakes is handed over as soon as the statement has answered: so never in a
    transaction, which might not commit.
    """
    rows = yield sql["signalling/send"].bind(
        id=target if isinstance(target, int) else None,
        key=target if isinstance(target, str) else None,
        name=signal.name,
        payload=signal.payload,
        dedup=signal.dedup,
        notify=notify,
        worker=None if place is None else place.worker,
        lanes=None if place is None else place.lanes,
    )
    if not rows:
        return None
    id_, queue, fresh, woken, told, knocked, *claim = rows[0]
    claimed = claim[0] is not None
    if claimed and place is not None:
        place.claimed([tuple(claim)])
    return Delivery(id_, queue, fresh, woken and not claimed, bool(told), knocked=knocked)


def deliver_or_insert(
    sql: Catalog, row: NewInstance, signal: NewSignal, *, notify: bool = True, soon: float = 60.0
) -> Operation[Delivery]:
    """Delivers to the live instance of the row's key, or inserts the row with the signal in its inbox.

    To be run in one transaction. Each statement sees what has committed before it: of two callers one inserts, and the
    other, who waited for that, delivers.
    """
    assert row.key is not None
    while True:
        delivery = yield from deliver(sql, row.key, signal, notify=notify)
        if delivery is not None:
            return delivery
        inserted = yield from insert_all(sql, [row], notify=notify, soon=soon)
        place = inserted.placed[0]
        if not place.duplicate:
            delivery = yield from deliver(sql, place.id, signal, notify=False)
            assert delivery is not None  # its row is ours until the end of the transaction
            return delivery._replace(woken=not row.delay, told=inserted.told, started=True)
        held = yield sql["inserting/holders"].bind(keys=msgspec.json.encode([row.key]).decode())
        if held and held[0][2] == RESERVED:
            raise DuplicateInstance(row.key, held[0][1])
