"""What an engine's process does in E and F: who waits before a signal is sent, what is run in turns, how much."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import agent, registry  # noqa: E402
from benchmarks.board import Board  # noqa: E402
from benchmarks.workloads.families import family  # noqa: E402
from benchmarks.workloads.latencies import wakeups  # noqa: E402


class Engine:
    """Its own adapter and client: waiters park one by one, as they are asked for."""

    loop = "asyncio"

    def __init__(self, board: Board, most: int = 1000) -> None:
        self.board, self.most = board, most
        self.calls: list[tuple[str, int]] = []
        self.waiting = 0

    async def setup(self) -> None: ...

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Engine]:
        yield self

    worker = client

    async def one(self, kind: str, number: int) -> None: ...

    async def many(self, kind: str, count: int) -> None:
        self.calls.append((kind, count))

    async def signal(self, number: int) -> None:
        self.calls.append(("signal", self.waiting))
        self.board.mark(number)

    async def parked(self) -> int:
        self.waiting = min(self.most, self.waiting + 5)
        return self.waiting

    async def left(self) -> int:
        return 0

    async def family(self, count: int) -> None:
        self.calls.append(("family", count))


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "board")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleep(seconds: float) -> None: ...

    monkeypatch.setattr(agent.asyncio, "sleep", sleep)


async def test_no_signal_is_sent_before_all_wait(board: Board) -> None:
    engine = Engine(board)
    total = agent.WARM + 4
    answer = await agent.wakeups(engine, board, {"local": True, "count": 4})
    assert engine.calls[0] == ("waiter", total)
    assert len(answer["ms"]) == 4
    sent = engine.calls[1:]
    assert len(sent) == total
    assert all(waiting >= total for _, waiting in sent)


async def test_engine_that_does_not_hold_so_many_waiters_is_told_of_with_the_numbers(board: Board) -> None:
    with pytest.raises(TimeoutError, match="20 waiters inserted, 5 wait for a signal after 0 s"):
        await agent._until_parked(Engine(board, most=5), 20, limit=0.0)


@pytest.mark.parametrize(("count", "warm"), [(5000, 500), (100, 100)])
async def test_family_is_run_in_turns_after_a_warm_up_that_is_no_larger(board: Board, count: int, warm: int) -> None:
    engine = Engine(board)
    spent = await agent.family(engine, board, {"count": count})
    assert set(spent) == {"plain", "children"}
    assert engine.calls[:2] == [("noop", warm), ("family", warm)]
    assert engine.calls[2:] == [("noop", count), ("family", count), ("family", count), ("noop", count)]


class FakeBench:
    """Stands for the agents, too."""

    def __init__(self, board: Board, share: dict[str, float]) -> None:
        self.entry = replace(registry.find("gen_durable"), share=share)
        self.board = board
        self.asked: dict[str, int] = {}

    def scaled(self, workload: str, count: int) -> int:
        return round(count * self.entry.scale(workload))

    @contextmanager
    def fresh(self, workload: str) -> Iterator[FakeBench]:
        yield self

    @contextmanager
    def workers(self, count: int) -> Iterator[None]:
        yield

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        self.asked[command] = arguments["count"]
        return {"ms": [1.0] * arguments["count"], "children": 2.0, "plain": 1.0}


def test_share_scales_waiters_and_children_down(board: Board) -> None:
    bench = FakeBench(board, {"E": 0.5, "F": 0.1})
    assert wakeups(bench, count=200, local=False).count == 100  # type: ignore[arg-type]
    sample = family(bench, count=5000)  # type: ignore[arg-type]
    assert (sample.count, sample.value, sample.extras["share"]) == (500, 250.0, 0.5)
    assert bench.asked == {"prepare": 0, "wakeups": 100, "family": 500}
