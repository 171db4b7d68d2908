"""Operations that read."""

from __future__ import annotations

from typing import Any

import msgspec

from gen_durable._store.operation import Catalog, Operation, Row
from gen_durable.snapshot import Page, QueueCount, Snapshot, Transition, WorkerInfo
from gen_durable.status import Status, TransitionKind

__all__ = ["counts", "find", "history", "page", "set_paused", "workers"]


def _json(raw: Any) -> Any:
    return None if raw is None else msgspec.json.decode(raw)


def _snapshot(row: Row) -> Snapshot:
    return Snapshot(
        id=row[0],
        machine=row[1],
        version=row[2],
        queue=row[3],
        step=row[4],
        status=Status(row[5]).label,
        priority=row[6],
        attempt=row[7],
        crashes=row[8],
        key=row[9],
        state=_json(row[10]),
        result=_json(row[11]),
        error=_json(row[12]),
        worker=row[13],
        rev=row[14],
        due_at=row[15],
        inserted_at=row[16],
        updated_at=row[17],
        finished_at=row[18],
        awaits=row[19],
        children_left=row[20],
        parent_id=row[21],
    )


def find(sql: Catalog, target: int | str) -> Operation[Snapshot | None]:
    """One instance, by id or by key (the live one, else the one that ended last)."""
    if isinstance(target, int):
        rows = yield sql["reading/by_id"].bind(id=target)
    else:
        rows = yield sql["reading/by_key"].bind(key=target)
    return _snapshot(rows[0]) if rows else None


def page(
    sql: Catalog,
    *,
    machine: str | None,
    queue: str | None,
    key_prefix: str | None,
    statuses: list[int] | None,
    before: int | None,
    limit: int,
) -> Operation[Page]:
    """A page of instances, newest first."""
    rows = yield sql["reading/page"].bind(
        machine=machine, queue=queue, key_prefix=key_prefix, statuses=statuses, before=before, limit=limit + 1
    )
    items = [_snapshot(row) for row in rows[:limit]]
    return Page(items=items, next=items[-1].id if len(rows) > limit else None)


def history(sql: Catalog, instance_id: int) -> Operation[list[Transition]]:
    """The transitions of one instance, oldest first."""
    rows = yield sql["reading/history"].bind(id=instance_id)
    return [
        Transition(
            seq=seq,
            step=step,
            attempt=attempt,
            outcome=TransitionKind(outcome).label,
            at=at,
            took=took,
            worker=worker,
            error=_json(error),
            state=_json(state),
        )
        for seq, step, attempt, outcome, took, at, worker, error, state in rows
    ]


def counts(sql: Catalog) -> Operation[list[QueueCount]]:
    """How many instances there are, by queue, machine and status."""
    rows = yield sql["reading/counts"].bind()
    merged: dict[tuple[str, str, int, str], int] = {}
    for queue, machine, version, status, count in rows:
        place = (queue, machine, version, Status(status).label)
        merged[place] = merged.get(place, 0) + count
    return [
        QueueCount(queue=queue, machine=machine, version=version, status=status, count=count)
        for (queue, machine, version, status), count in merged.items()
    ]


def workers(sql: Catalog) -> Operation[list[WorkerInfo]]:
    """The registered workers."""
    rows = yield sql["reading/workers"].bind()
    return [
        WorkerInfo(
            id=worker,
            name=name,
            host=host,
            pid=pid,
            queues=_json(queues),
            started_at=started_at,
            seen_at=seen_at,
            silent=silent,
        )
        for worker, name, host, pid, queues, started_at, seen_at, silent in rows
    ]


def set_paused(sql: Catalog, queue: str, paused: bool) -> Operation[None]:
    """Pauses or resumes a queue for the whole cluster."""
    yield sql["queues/pause"].bind(queue=queue, paused=paused)
    yield sql["limiting/pause"].bind(queue=queue, paused=paused)
