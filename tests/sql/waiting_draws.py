"""What Hypothesis draws from: keys, names, and outcomes as the executor makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from waiting_wire import Claim

from gen_durable._runtime.outcomes import _progress
from gen_durable._runtime.record import BACK, END, ON, WAIT, Record, reason_json
from gen_durable._store.inserting import NewInstance
from gen_durable.status import TransitionKind

__all__ = ["FAR", "KEEP", "dedups", "drawn", "keys", "later", "names", "scopes", "senders"]

KEEP = 3600.0  # less than a day: such rows are swept
FAR = 1000.0

keys = st.sampled_from([None, None, "k", "l"])
families = st.one_of(
    st.lists(st.none(), min_size=2, max_size=4),
    st.lists(st.none(), min_size=2, max_size=4),
    st.lists(keys, max_size=3),  # a key that is taken refuses them all
)
names = st.sampled_from(["a", "b"])
scopes = st.sampled_from([None, None, 0, 1 << 6, 7 << 6])
dedups = st.sampled_from([None, None, "d", "e"])
senders = st.sampled_from([None, 1, 2])  # whose process sends a signal: a worker's, or none's
later = st.booleans()


def drawn(data: st.DataObject, claim: Claim, op: int, row: Callable[[str | None], NewInstance]) -> Record:
    """A record as the executor makes it."""
    held: Any = claim
    claim.spawning = None
    record = Record(claim.id, claim.rev, op, "two", tried=claim.attempt, took=0.25, ran="one")
    if op == ON:
        record.kind = TransitionKind.NEXT
        _progress(held, record)
    elif op == BACK:
        record.kind = data.draw(st.sampled_from([TransitionKind.NEXT, TransitionKind.RETRY, TransitionKind.SLEEP]))
        again = record.kind == TransitionKind.RETRY
        record.attempt, record.crashes = (claim.attempt + 1, claim.crashes) if again else (0, 0)
        record.delay = FAR if data.draw(later) else 0.0
        if not again:
            _progress(held, record)
    elif op == END:
        record.step, record.ran, record.keep = None, None, KEEP
        record.kind = data.draw(st.sampled_from([TransitionKind.DONE, TransitionKind.FAILED, TransitionKind.CANCELLED]))
        record.error = None if record.kind == TransitionKind.DONE else reason_json("Stop", "so it goes")
    else:
        record.attempt, record.crashes = 0, 0
        record.delay = FAR if data.draw(later) else None
        if op == WAIT:
            record.kind = TransitionKind.AWAIT
            if claim.waits is not None:
                record.signals = [row.id for row in claim.waits.awaited() if not row.status] or None
            record.awaits = tuple(sorted(data.draw(st.sets(names, min_size=1))))
        else:
            _spawn(data, claim, record, row)
    return record


def _spawn(data: st.DataObject, claim: Claim, record: Record, row: Callable[[str | None], NewInstance]) -> None:
    held: Any = claim
    record.kind = TransitionKind.SPAWN
    _progress(held, record)
    rows = [row(key) for key in data.draw(families)]
    for child in rows:
        child.parent_id = claim.id
        child.parent_spawn = ((claim.waits and claim.waits.spawn) or 0) + 1
    claim.spawning = rows or None
    record.children = data.draw(st.integers(1, len(rows))) if rows else 0
    record.spare = len(rows) - record.children if data.draw(st.booleans()) else None
    record.rest = data.draw(st.booleans()) or None
