"""Operations that deliver signals."""

from __future__ import annotations

from typing import NamedTuple

from gen_durable._store.inserting import NewInstance, insert_all
from gen_durable._store.operation import Catalog, Operation
from gen_durable.errors import DuplicateInstance

__all__ = ["Delivery", "NewSignal", "deliver", "deliver_or_insert"]


class NewSignal(NamedTuple):
    """A signal to be: its name, its payload as JSON, and what makes it the same as another."""

    name: str
    payload: str | None
    dedup: str | None


class Delivery(NamedTuple):
    """What became of a signal.

    ``fresh``: it is in the inbox now, and was not there before; ``woken``: it woke the instance; ``told``: other
    workers know of that; ``started``: the instance was inserted for it.
    """

    id: int
    queue: str | None
    fresh: bool
    woken: bool
    told: bool
    started: bool = False


def deliver(sql: Catalog, target: int | str, signal: NewSignal, *, notify: bool = True) -> Operation[Delivery | None]:
    """Puts a signal into the inbox of a live instance; None: there is none, and nothing was stored."""
    rows = yield sql["signalling/send"].bind(
        id=target if isinstance(target, int) else None,
        key=target if isinstance(target, str) else None,
        name=signal.name,
        payload=signal.payload,
        dedup=signal.dedup,
        notify=notify,
    )
    if not rows:
        return None
    id_, queue, fresh, woken, told = rows[0]
    return Delivery(id_, queue, fresh, woken, bool(told))


def deliver_or_insert(
    sql: Catalog, row: NewInstance, signal: NewSignal, *, notify: bool = True, soon: float = 60.0
) -> Operation[Delivery]:
    """Delivers to the live instance of the row's key, or inserts the row with the signal in its inbox.

    To be run in one transaction. Each statement sees what has committed before it: of two callers one inserts, and the
    other, who waited for that, delivers.
    """
    assert row.key is not None
    holder: int | None = None
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
        if place.id == holder:
            # It was there when this turn began, and is not live: its key is reserved beyond its end.
            raise DuplicateInstance(row.key, place.id)
        holder = place.id
