"""Why an instance does not run, in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gen_durable._store.limiting import MOST, Facts
from gen_durable.limits import SEPARATOR, name_of_line
from gen_durable.snapshot import LimitRef, Snapshot, Why
from gen_durable.status import Status

__all__ = ["explain"]


def explain(found: Snapshot, facts: Facts | None) -> Why:
    """What holds an instance up; ``facts`` are None of one that has ended."""
    if facts is None:
        return Why(id=found.id, status=found.status, reason=_end(found))
    status = Status(facts.status)
    if status is Status.BLOCKED and facts.line is not None:
        return _blocked(found, facts, facts.line)
    if status is Status.RUNNABLE:
        return _runnable(found, facts)
    reason = f"worker {found.worker} executes its step {found.step!r}, attempt {found.attempt}"
    if status is Status.SCHEDULED:
        reason = f"it is due in {_span(facts.due or 0)}{_nobody(found, facts)}"
    elif status is Status.AWAITING_SIGNAL:
        names = ", ".join(repr(name) for name in found.awaits or ())
        reason = f"it waits for a signal of the name {names}{_deadline(facts)}"
    elif status is Status.AWAITING_CHILDREN:
        left = found.children_left
        reason = f"it waits for the end of {left} {'child' if left == 1 else 'children'}{_deadline(facts)}"
    seconds = None if status is Status.EXECUTING else facts.due
    return Why(id=found.id, status=status.label, reason=reason, seconds=seconds)


def _end(found: Snapshot) -> str:
    error = found.error or {}
    because = f": {error.get('type')}: {error.get('message')}" if found.error else ""
    return f"it has ended, as {found.status}{because}"


def _runnable(found: Snapshot, facts: Facts) -> Why:
    limit = holding = None
    nobody = _nobody(found, facts)
    if facts.paused:
        reason = f"its queue {found.queue!r} is paused"
    elif nobody:
        reason = nobody.removeprefix("; ")
    elif facts.cap is not None and facts.busy is not None and facts.busy >= facts.cap:
        limit = LimitRef(kind="queue", name=found.queue, partition=None, limit=int(facts.cap))
        holding = facts.busy
        reason = f"its queue {found.queue!r} runs {holding} of at most {facts.cap:g} steps in the cluster"
    else:
        reason = f"it is due, and a worker is to take it; {_before(facts)} in its queue {found.queue!r}"
    return Why(
        id=found.id, status="runnable", reason=reason, limit=limit, holding=holding, ahead=facts.ahead, seconds=None
    )


def _blocked(found: Snapshot, facts: Facts, line: str) -> Why:
    _, between, partition = line.partition(SEPARATOR)
    ref = LimitRef(
        kind="concurrency" if line[0] == "c" else "rate",
        name=name_of_line(line),
        partition=partition if between else None,
        limit=1 if facts.amount is None else facts.amount,
    )
    shown = repr(ref.name) if ref.partition is None else f"{ref.name!r}, partition {ref.partition!r}"
    why = Why(id=found.id, status="blocked", reason="", limit=ref, ahead=facts.ahead)
    if ref.kind == "concurrency":
        holders, holding = tuple(facts.holders or ()), facts.holding or 0
        reason = f"the concurrency key {shown} lets {ref.limit:g} run at once; {_held_by(holders, holding)}"
        why = dataclasses.replace(
            why, limit=dataclasses.replace(ref, limit=int(ref.limit)), holders=holders, holding=holding
        )
    elif facts.amount is None or facts.per is None or facts.need is None or facts.tokens is None:
        reason = f"the rate limit {shown} is not known; it is let through"
    else:
        seconds = max((facts.need - facts.tokens) * facts.per / facts.amount, 0.0)
        reason = f"the rate limit {shown} lets {facts.amount:g} tokens through in {_span(facts.per)}"
        reason += f"; its turn is in about {_span(seconds)}" if seconds else "; there are tokens for it"
        full = dataclasses.replace(ref, per=facts.per, burst=int(facts.burst or 1))
        why = dataclasses.replace(why, limit=full, seconds=seconds)
    reason += f"; {_before(facts)} in the line"
    if not facts.living:
        reason += "; no worker lives"
    elif facts.paused:
        reason += f"; and its queue {found.queue!r} is paused"
    return dataclasses.replace(why, reason=reason)


def _held_by(holders: Sequence[int], holding: int) -> str:
    if not holders:
        return "nobody does, and a worker is to bring it forward"
    more = f" and {_count(holding - len(holders), cut=holding >= MOST)} more" if holding > len(holders) else ""
    return f"{', '.join(map(str, holders))}{more} hold{'s' if holding == 1 else ''} it"


def _before(facts: Facts) -> str:
    ahead = facts.ahead or 0
    return f"{_count(ahead, cut=ahead >= MOST)} {'is' if ahead == 1 else 'are'} before it"


def _count(number: int, *, cut: bool) -> str:
    return f"{number} or more" if cut else str(number)


def _nobody(found: Snapshot, facts: Facts) -> str:
    """Which worker there would have to be; nothing, where there is one."""
    if not facts.living:
        return "; no worker lives"
    if not facts.serving:
        return f"; no worker runs its queue {found.queue!r}"
    if not facts.knowing:
        return f"; no worker knows {found.machine} version {found.version}"
    return ""


def _deadline(facts: Facts) -> str:
    return "" if facts.due is None else f", for {_span(facts.due)} more at most"


def _span(seconds: float) -> str:
    """A span for people: ``0.25 s``, ``90 s``, ``3.5 h``."""
    for size, least, unit in ((86400.0, 86400.0, "d"), (3600.0, 3600.0, "h"), (60.0, 300.0, "min")):
        if seconds >= least * 0.999:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
