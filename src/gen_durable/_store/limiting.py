"""Operations on limits: setting them, showing them, and why an instance waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from gen_durable._store.operation import Catalog, Operation
from gen_durable.snapshot import LimitInfo

__all__ = [
    "MOST",
    "Facts",
    "Kind",
    "NewLimit",
    "facts",
    "listed",
    "rates",
    "seed",
    "set_limit",
    "tell",
    "telling",
    "unset_limit",
    "wake",
]

MOST = 10_000  # what is counted stops here
SHOWN = 10  # holders

Kind: TypeAlias = Literal["concurrency", "rate", "queue"]


class NewLimit(NamedTuple):
    """A limit to be; ``per`` (seconds) and ``burst`` are of a rate."""

    kind: Kind
    name: str
    amount: float
    per: float | None = None
    burst: float | None = None


class Facts(NamedTuple):
    """What stands between a live instance and its next step; ``reading/why.sql`` explains each."""

    status: int
    due: float | None
    paused: bool
    living: int
    serving: int
    knowing: int
    cap: float | None
    busy: int | None
    ahead: int | None
    line: str | None
    amount: float | None
    per: float | None
    burst: float | None
    holding: int | None
    holders: list[int] | None
    need: float | None
    tokens: float | None


def seed(sql: Catalog, limits: Sequence[NewLimit]) -> Operation[list[tuple[Kind, str]]]:
    """Makes configured limits known; answers with those that are new or were configured otherwise."""
    rows = yield sql["limiting/seed"].bind(limits=msgspec.json.encode([one._asdict() for one in limits]).decode())
    return [(kind, name) for kind, name in rows]


def set_limit(sql: Catalog, limit: NewLimit) -> Operation[list[tuple[Kind, str]]]:
    """Sets a limit; answers with it, when anything is new."""
    rows = yield sql["limiting/set"].bind(**limit._asdict())
    return [(limit.kind, limit.name) for _ in rows]


def unset_limit(sql: Catalog, kind: Kind, name: str) -> Operation[list[tuple[Kind, str]]]:
    """Takes a limit away; answers with it, when there was one."""
    rows = yield sql["limiting/unset"].bind(kind=kind, name=name)
    return [(kind, name) for _ in rows]


def telling(
    sql: Catalog, change: Operation[list[tuple[Kind, str]]], *, asking: bool = False
) -> Operation[list[tuple[Kind, str]]]:
    """A change of limits, and word of it to whoever waits: to be run in one transaction, so that none goes without the
    other. Then :func:`tell` again, by itself: see the guard of its statement. With ``asking`` the workers are asked to
    do that when the transaction commits, which is not ours to wait for."""
    changed = yield from change
    yield from tell(sql, changed)
    if asking and changed:
        yield from wake(sql, [f"m:{kind}:{name}" for kind, name in changed])
    return changed


def tell(sql: Catalog, changed: Sequence[tuple[Kind, str]]) -> Operation[None]:
    """What waits for changed limits is to be looked at."""
    keyed = [one for one in changed if one[0] != "queue"]
    if keyed:
        yield sql["limiting/knock"].bind(kinds=[kind for kind, _ in keyed], names=[name for _, name in keyed])
    queues = [name for kind, name in changed if kind == "queue"]
    if queues:  # "l:": whether a queue has a cap is known with its lanes
        yield from wake(sql, ["l:", *(f"q:{name}" for name in queues)])


def wake(sql: Catalog, messages: list[str]) -> Operation[None]:
    """Tells workers something."""
    yield sql["queues/wake"].bind(messages=messages)


def rates(sql: Catalog) -> Operation[dict[str, float]]:
    """The burst of each rate."""
    rows = yield sql["limiting/rates"].bind()
    return dict(rows)


def listed(sql: Catalog) -> Operation[list[LimitInfo]]:
    """All limits, by kind and name."""
    rows = yield sql["limiting/list"].bind(most=MOST)
    return [
        LimitInfo(
            kind=kind, name=name, limit=limit if kind == "rate" else int(limit), per=per,
            burst=None if burst is None else int(burst), lines=lines, holding=holding, waiting=waiting,
        )
        for kind, name, limit, per, burst, lines, holding, waiting in rows
    ]  # fmt: skip


def facts(sql: Catalog, instance_id: int, *, lease: float, grace: float) -> Operation[Facts | None]:
    """What stands between a live instance and its next step; None: there is no such live one."""
    rows = yield sql["reading/why"].bind(id=instance_id, lease=lease, grace=grace, most=MOST, shown=SHOWN)
    return Facts(*rows[0]) if rows else None
