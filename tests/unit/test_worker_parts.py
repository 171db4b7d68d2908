"""Parts of a worker that need no database: whom it tells of rows that go back, and a lane asked for in an outage."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gen_durable import Engine
from gen_durable._runtime import needs as module
from gen_durable._runtime.claimer import Claimer
from gen_durable._runtime.link import Link, LinkDown
from gen_durable._runtime.record import BACK, END, Record
from gen_durable._runtime.worker import Worker
from gen_durable._store.operation import catalog
from gen_durable.errors import DatabaseUnreachable
from gen_durable.events import Hooks


class Bell:
    def __init__(self) -> None:
        self.rung: list[str] = []

    def later(self, queue: str) -> None:
        self.rung.append(queue)


@pytest.fixture
def worker() -> Worker:
    """Not started: it runs the queue "mine"; lane 2 is the queue "other", which it does not."""
    engine = Engine("postgresql://nowhere", queues={"mine": 1})
    client = SimpleNamespace(_bell=Bell(), _ended=lambda id_: None)
    made = Worker(engine.settings, "", engine._sql, Hooks(), client)
    claimer: Any = SimpleNamespace(held_up=False, failing=False, forget=lambda held: None, announce=lambda queue: None)
    made._claimer = claimer
    made._needs.queue_of_lane[2] = "other"
    return made


def moved(id_: int) -> tuple[Any, Record]:
    held = SimpleNamespace(id=id_, queue=SimpleNamespace(name="mine", capped=False), gate=None, rate=None)
    return held, Record(id_, 1, BACK, "run", lane=2)


async def test_the_last_of_many_rows_that_go_to_another_queue_is_told_of(worker: Worker) -> None:
    """R19: one notification serves the commits of a few milliseconds, and those behind it get one of their own, after
    their commit."""
    bell = worker._client._bell
    first, second = moved(1), moved(2)
    assert worker.wake_list([first]) == ["other"]
    worker.left(*first)
    assert bell.rung == [], "its commit has told"
    assert worker.wake_list([second, moved(3)]) == [], "so soon after"
    assert bell.rung == [], "not before the commit is there"
    worker.left(*second)
    assert bell.rung == ["other"]
    worker.left(*moved(3))
    assert bell.rung == ["other"], "once for the group"


async def test_who_need_not_be_told(worker: Worker) -> None:
    """R19: rows that this worker starts itself, rows due later, and rows that end."""
    mine, later, end = moved(1), moved(2), moved(3)
    mine[1].lane, later[1].delay, end[1].op = None, 5.0, END
    assert worker.wake_list([mine, later, end]) == []
    assert worker._telling._untold == set()


async def test_a_lane_is_asked_for_until_the_database_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """R27: that the database is away while a step moves on to another queue is not the step's fault."""
    asked: list[str] = []

    async def lane(spec: Any, queue: str) -> int:
        asked.append(queue)
        if len(asked) < 3:
            raise DatabaseUnreachable("away")
        return 5

    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.0)
    needs = module.Needs(SimpleNamespace(_lane=lane))
    assert await needs.lane_of(SimpleNamespace(), "elsewhere") == 5  # type: ignore[arg-type]  # handed on only
    assert asked == ["elsewhere"] * 3
    assert needs.queue_of_lane[5] == "elsewhere"


async def test_claims_of_a_life_that_is_over_are_left_to_others_when_its_link_is_closed() -> None:
    """R26: a look at limits may answer with claims when the worker has just been declared dead; the process goes on."""
    link = Link("postgresql://nowhere", "claim", Hooks(), application_name="test", deadline=1.0)
    link.abort()
    claimer = Claimer(
        link, catalog("gen_durable"), 7, {}, {}, Hooks(),
        poll_interval=1.0, check_interval=1.0, prefetch=1, commits_lag=lambda: False, max_crashes=lambda spec: 3,
    )  # fmt: skip
    with pytest.raises(LinkDown):
        await claimer.release([(1, 1)])
