"""What Hypothesis draws from: rows with limits, lines, outcomes as the executor makes them; and the tables as JSON."""

from __future__ import annotations

from hypothesis import strategies as st
from limits_model import AMOUNT, PER, Row

from gen_durable._runtime.record import BACK, END, ON, WAIT, Record, reason_json
from gen_durable.status import TransitionKind

__all__ = ["DUMP", "FAR", "bundles", "lines", "most", "outcome"]

FAR = 1000.0

DUMP = """
SELECT jsonb_build_object(
    'rows', (
        SELECT jsonb_agg(jsonb_build_array(
            id, status, worker, rev, crashes, gate, own_gate, rate, weight, line, priority, extract(epoch FROM due_at)
        )) FROM {schema}.instances WHERE status < 9 AND due_at < 'infinity'
    ),
    'parked', (
        SELECT jsonb_agg(jsonb_build_array(
            id, status, worker, rev, crashes, gate, own_gate, rate, weight, line, priority, 0
        )) FROM {schema}.instances WHERE status < 9 AND due_at = 'infinity'
    ),
    'lines', (
        SELECT jsonb_object_agg(line, jsonb_build_array(
            tokens + extract(epoch FROM {clock} - filled_at) / PER, extract(epoch FROM wake_at - {clock})
        )) FROM {schema}.lines
    ),
    'knocks', (SELECT jsonb_agg(DISTINCT line) FROM {schema}.knocks)
)
""".replace("PER", f"{PER:g} * {AMOUNT:g}")

gates = st.sampled_from([None, "ck", "ck", "cs\x1fa", "cs\x1fb"])
rates = st.sampled_from([None, None, "rapi", "rapi", "rten\x1fa", "rten\x1fb"])
weights = st.sampled_from([None, None, 1, 2, 3])
priorities = st.sampled_from([0, 0, 0, -1, 1])
lines = st.lists(
    st.sampled_from(["ck", "cs\x1fa", "cs\x1fb", "rapi", "rten\x1fa", "rten\x1fb"]), min_size=1, unique=True
)
most = st.sampled_from([1000, 1000, 1000, 3, 1])
bundles = st.tuples(gates, rates, weights, priorities)


def outcome(data: st.DataObject, row: Row) -> Record:
    """A record as the executor makes it."""
    op = data.draw(st.sampled_from([END, END, BACK, BACK, BACK, WAIT, ON]))
    record = Record(row.id, row.rev, op, "two", took=0.25, ran="one")
    if op == END:
        record.step, record.keep = None, 3600.0
        record.kind = data.draw(st.sampled_from([TransitionKind.DONE, TransitionKind.FAILED]))
        record.error = None if record.kind == TransitionKind.DONE else reason_json("Stop", "so it goes")
        return record
    record.kind = {BACK: TransitionKind.NEXT, WAIT: TransitionKind.AWAIT, ON: TransitionKind.NEXT}[op]
    if op == BACK:
        record.kind = data.draw(st.sampled_from([TransitionKind.NEXT, TransitionKind.RETRY, TransitionKind.SLEEP]))
        record.delay = FAR if data.draw(st.booleans()) else 0.0
    if op != ON:
        record.attempt, record.crashes = 0, 0
    record.awaits = ("go",) if op == WAIT else None
    if op == ON:  # as the executor lets it run on: under what it holds
        record.limits, record.gate = True, data.draw(st.sampled_from([row.gate, None]))
    elif record.kind != TransitionKind.RETRY and data.draw(st.booleans()):
        record.limits, record.gate, record.rate = True, data.draw(gates), data.draw(rates)
        record.weight = data.draw(weights)
    return record
