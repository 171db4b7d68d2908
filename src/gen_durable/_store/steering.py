"""Operations that steer instances: cancel, retry."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from gen_durable._store.operation import Catalog, Operation
from gen_durable.context import ChildResult
from gen_durable.status import Status

__all__ = ["Cancelled", "Claim", "Target", "bring_back", "cancel_all", "cancel_children", "children", "find"]

BATCH = 1000


class Claim(NamedTuple):
    """A worker's hold on an instance: good until the instance has another rev."""

    worker: int
    rev: int


class Target(NamedTuple):
    """What is to be steered."""

    id: int
    status: Status
    queue: str
    key: str | None

    @property
    def terminal(self) -> bool:
        """Whether it has ended."""
        return self.status.terminal


def find(sql: Catalog, target: int | str) -> Operation[Target | None]:
    """An instance by id or key (the live one, else the one that ended last)."""
    id_, key = (target, None) if isinstance(target, int) else (None, target)
    rows = yield sql["steering/target"].bind(id=id_, key=key)
    return Target(rows[0][0], Status(rows[0][1]), *rows[0][2:]) if rows else None


class Cancelled(NamedTuple):
    """What a cancel did: the instances that ended, each with its claim if it ran, and the lanes of woken parents."""

    ids: dict[int, Claim | None]
    lanes: set[int]


def cancel_all(
    sql: Catalog, ids: list[int], reason: bytes, *, keep: bool, cascade: bool = False
) -> Operation[Cancelled]:
    """Cancels the live ones of some instances, and (``cascade``) what they have spawned, and so on.

    With ``cascade`` it is to be run in one transaction. The whole family goes in the order of ids, as commits lock, and
    so parents before their children: none is woken by the end of a child that goes with it. What they were just
    spawning is found when their rows are gone.
    """
    done = Cancelled({}, set())
    found = sorted(ids)
    while found:
        if cascade:
            found = yield from _with_descendants(sql, found)
        for start in range(0, len(found), BATCH):
            part = msgspec.json.encode(found[start : start + BATCH]).decode()
            rows = yield sql["steering/cancel"].bind(ids=part, reason=reason.decode(), keep=keep)
            for id_, worker, machine, lane, rev in rows:
                if machine is not None:
                    done.ids[id_] = None if worker is None else Claim(worker, rev)
                elif lane is not None:
                    done.lanes.add(lane)
        found = (yield from _descend(sql, found, None)) if cascade else []
    return done


def _with_descendants(sql: Catalog, ids: list[int]) -> Operation[list[int]]:
    family, level = set(ids), ids
    while level:
        level = [id_ for id_ in (yield from _descend(sql, level, None)) if id_ not in family]
        family.update(level)
    return sorted(family)


def cancel_children(sql: Catalog, parent: int, spawn: int, reason: bytes, *, keep: bool) -> Operation[Cancelled]:
    """Cancels the live children of one spawn."""
    ids = yield from _descend(sql, [parent], spawn)
    return (yield from cancel_all(sql, ids, reason, keep=keep))


def _descend(sql: Catalog, parents: list[int], spawn: int | None) -> Operation[list[int]]:
    rows = yield sql["steering/descend"].bind(parents=msgspec.json.encode(parents).decode(), spawn=spawn)
    return sorted(row[0] for row in rows)


def children(sql: Catalog, parent: int, spawn: int) -> Operation[list[ChildResult]]:
    """The children of one spawn, in the order given."""
    rows = yield sql["joining/children"].bind(parent=parent, spawn=spawn)
    decode = msgspec.json.decode
    return [
        ChildResult(
            id_,
            machine,
            key,
            Status(status).label,
            None if result is None else decode(result),
            None if error is None else decode(error),
        )
        for id_, machine, key, status, result, error in rows
    ]


def bring_back(sql: Catalog, instance_id: int) -> Operation[bool]:
    """Makes a failed or cancelled instance runnable again; answers whether it was one."""
    return bool((yield sql["steering/retry"].bind(id=instance_id)))
