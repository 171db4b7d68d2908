"""How the flusher cuts its groups, and what it does when the database does not take one as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec
import psycopg
import pytest

from gen_durable._runtime.committer import Committer, Entry
from gen_durable._runtime.flusher import BATCH_BYTES, Flusher
from gen_durable._runtime.held import Held
from gen_durable._runtime.link import Link, LinkDown
from gen_durable._runtime.record import BACK, END, Record
from gen_durable._store.operation import Request, Row, catalog
from gen_durable.events import Hooks
from gen_durable.status import Status


class Server(Link):
    """A link whose other end commits what it is sent, and notes it; ``fail`` may raise first."""

    def __init__(self, fail: Callable[[list[dict[str, Any]], list[str]], None] = lambda group, wake: None) -> None:
        self.groups: list[list[int]] = []
        self.wakes: list[list[str]] = []
        self._fail = fail

    async def fetch(self, request: Request) -> list[Row]:
        values = dict(zip(request.statement.parameters, request.parameters, strict=True))
        if request.statement.name not in ("committing/commit", "committing/end"):
            return []
        group = msgspec.json.decode(values["outcomes"])
        self.groups.append([record["id"] for record in group])
        assert len(self.groups) < 1000, "it sends the same for ever"
        self.wakes.append(values.get("wake", []))
        self._fail(group, values.get("wake", []))
        if request.statement.name == "committing/end":
            return [("done", msgspec.json.encode([[record["id"], record["rev"]] for record in group]).decode(), 0)]
        return [(record["id"], record["rev"] + 1, None) for record in group]


class Owner:
    """Who is told: it counts what left."""

    def __init__(self, wake: list[str]) -> None:
        self.wake = wake
        self.done: list[int] = []
        self.gone: list[int] = []

    def goes_on(self, held: Held) -> None:
        raise AssertionError

    def left(self, held: Held, record: Record | None) -> None:
        (self.gone if record is None else self.done).append(held.id)

    def wake_list(self, batch: list[Entry]) -> list[str]:
        return list(self.wake)


class Claimed:
    """The part of a claim that the flusher reads."""

    step = "run"
    spawning = waits = parent_id = gate = None
    gone = False

    def __init__(self, id_: int) -> None:
        self.id, self.rev = id_, 1


async def flush(server: Server, sizes: list[int], wake: list[str] | None = None, op: int = END) -> Owner:
    owner = Owner(wake or [])
    committer = Committer(server, catalog("gen_durable"), 7, owner, Hooks())
    flusher = Flusher(server, server, committer, owner, lambda held: 60.0)
    for number, size in enumerate(sizes, 1):
        result = msgspec.Raw(b'"' + b"x" * size + b'"')
        flusher.add(cast("Held", Claimed(number)), Record(number, 1, op, result=result))
    running = asyncio.create_task(flusher.run())
    try:
        await asyncio.wait_for(flusher.wait_idle(), 10)
    finally:
        running.cancel()
    assert owner.gone == []
    assert sorted(owner.done) == list(range(1, len(sizes) + 1))
    return owner


async def test_a_group_is_bounded_by_its_bytes() -> None:
    """R27: a group must get through within the link's deadline; one that is too large by itself goes alone."""
    server = Server()
    third = BATCH_BYTES // 3
    await flush(server, [third - 2] * 5 + [2 * BATCH_BYTES] + [10] * 3)
    assert server.groups == [[1, 2, 3], [4, 5], [6], [7, 8, 9]]


async def test_a_group_that_breaks_its_connection_is_halved() -> None:
    """R27: it may have been too much for the link."""

    def too_much(group: list[dict[str, Any]], wake: list[str]) -> None:
        if len(group) > 4 and broken == []:
            broken.append(len(group))
            raise LinkDown("too slow")

    broken: list[int] = []
    server = Server(too_much)
    await flush(server, [1] * 1012)
    assert broken == [1000]
    assert [len(group) for group in server.groups[:3]] == [1000, 500, 500]


async def test_groups_stay_small_while_the_link_breaks() -> None:
    """R27: halves again and again, down to what gets through; the next group does not start from the top."""

    def too_much(group: list[dict[str, Any]], wake: list[str]) -> None:
        if len(group) > 200:
            raise LinkDown("too slow")

    server = Server(too_much)
    await flush(server, [1] * 2500)
    sizes = [len(group) for group in server.groups]
    assert sizes[:5] == [1000, 500, 250, 125, 125]
    assert max(sizes[1:]) == 500
    assert sum(size for size in sizes if size <= 200) == 2500


async def test_a_full_queue_of_notifications_costs_the_wake_up_alone() -> None:
    """R19, R27: Postgres refuses the commit, for no fault of an outcome: it is sent again without the wake-up."""

    def full(group: list[dict[str, Any]], wake: list[str]) -> None:
        if wake:
            raise psycopg.errors.ProgramLimitExceeded("too many notifications in the NOTIFY queue")

    server = Server(full)
    await flush(server, [1] * 6, ["default"], BACK)
    assert server.groups == [[1, 2, 3, 4, 5, 6]] * 2
    assert server.wakes == [["default"], []]


async def test_a_partition_that_is_attached_meanwhile_is_no_outcomes_fault() -> None:
    """R3, R27: the row was bound for the default partition, which then does not take it any more: it is sent again."""
    once = [psycopg.errors.CheckViolation("new row violates partition constraint")]

    def attached(group: list[dict[str, Any]], wake: list[str]) -> None:
        if once:
            raise once.pop()

    server = Server(attached)
    await flush(server, [1] * 6)
    assert server.groups == [[1, 2, 3, 4, 5, 6]] * 2


async def test_an_outcome_that_a_check_without_a_name_refuses_every_time_is_at_fault() -> None:
    """R8, R27: a trigger of the user's can raise that; it is not sent for ever, and the others commit."""

    def refuse(group: list[dict[str, Any]], wake: list[str]) -> None:
        if any(record["id"] == 4 and "result" in record for record in group):
            raise psycopg.errors.CheckViolation("no such result")

    server = Server(refuse)
    await flush(server, [1] * 6)
    assert len(server.groups) < 40


@pytest.mark.parametrize("number", [1, 4])
async def test_what_is_refused_without_a_wake_up_too_is_an_outcomes_fault(number: int) -> None:
    """R8, R27: the same error may be one outcome's own: then that one fails, and the others commit."""

    def refuse(group: list[dict[str, Any]], wake: list[str]) -> None:
        if wake or any(record["id"] == number and "result" in record for record in group):
            raise psycopg.errors.ProgramLimitExceeded("too large")

    server = Server(refuse)
    await flush(server, [1] * 6, ["default"], BACK)
    assert server.wakes[:2] == [["default"], []]
    assert server.groups[-1] != server.groups[0]


@pytest.mark.parametrize("status", [Status.RUNNABLE, Status.SCHEDULED, Status.AWAITING_SIGNAL, Status.BLOCKED])
def test_a_row_that_went_back_is_found_where_it_went(status: Status) -> None:
    """R27: when the answer was lost, also in the line of a limit, and where no history is kept."""
    committer = Committer(Server(), catalog("gen_durable"), 7, Owner([]), Hooks())
    held = cast("Held", Claimed(1))
    assert committer._is_there((held.rev + 1, status, None), held, Record(1, 1, BACK))
    assert not committer._is_there((held.rev, Status.EXECUTING, 7), held, Record(1, 1, BACK))
