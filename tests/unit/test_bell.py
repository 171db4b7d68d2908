"""When the bell rings by itself, on a clock that is moved by hand: R19."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from gen_durable import _bell
from gen_durable._bell import COALESCE_SECONDS as WINDOW
from gen_durable._bell import PATIENCE_SECONDS, Bell

TICK = WINDOW / 10


class Clock:
    """Time, and what is to be called when it has come."""

    def __init__(self) -> None:
        self.now = 100.0
        self._calls: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._numbers = itertools.count()

    def monotonic(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[..., Any], *args: Any) -> None:
        heapq.heappush(self._calls, (self.now + seconds, next(self._numbers), call, args))

    def pass_by(self, seconds: float) -> None:
        end = self.now + seconds
        while self._calls and self._calls[0][0] <= end:
            self.now, _, call, args = heapq.heappop(self._calls)
            call(*args)
        self.now = end


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_bell.time, "monotonic", clock.monotonic)
    monkeypatch.setattr(_bell.asyncio, "get_running_loop", lambda: clock)
    return clock


@pytest.fixture
def rings(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When it has rung."""
    found: list[float] = []
    monkeypatch.setattr(Bell, "send", lambda self, word: found.append(clock.now))
    return found


def insert(bell: Bell, clock: Clock, took: float = TICK, *, fails: bool = False) -> bool:
    """One insert from its sending to its end; whether it told."""
    sent = clock.now
    tells = bell.rides_along(["q"])
    clock.pass_by(took)
    if tells and not fails:
        bell.told(["q"], sent)
    elif not tells:
        bell.later("q")
    return tells and not fails


def test_one_insert_after_the_other_never_needs_a_ring(clock: Clock, rings: list[float]) -> None:
    """Of each window the first tells, and in time for all before it; only the last ones need a ring."""
    bell = Bell(None, {})  # type: ignore[arg-type]
    told = sum(insert(bell, clock) for _ in range(1000))
    assert 90 <= told <= 110
    assert rings == []
    clock.pass_by(10 * WINDOW)
    assert len(rings) <= 1


@pytest.mark.parametrize("pause", [0.0, 0.3 * WINDOW, 0.9 * WINDOW, 1.1 * WINDOW, 3 * WINDOW])
@pytest.mark.parametrize("took", [TICK, 0.7 * WINDOW, 2.5 * WINDOW])
@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_of_every_row_somebody_is_told_soon(
    clock: Clock, rings: list[float], count: int, took: float, pause: float
) -> None:
    """By an insert that was sent when it was there, or a ring: however inserts come."""
    bell = Bell(None, {})  # type: ignore[arg-type]
    there: list[float] = []
    tellings: list[tuple[float, float]] = []  # sent, heard
    for _ in range(count):
        sent = clock.now
        if insert(bell, clock, took):
            tellings.append((sent, clock.now))
        else:
            there.append(clock.now)
        clock.pass_by(pause)
    clock.pass_by(10 * WINDOW)
    tellings += [(ring, ring) for ring in rings]
    for row in there:
        heard = min((heard for sent, heard in tellings if sent >= row), default=None)
        assert heard is not None
        assert heard - row <= 2 * PATIENCE_SECONDS + took + 1e-9


def test_an_insert_that_fails_is_not_waited_for_twice(clock: Clock, rings: list[float]) -> None:
    bell = Bell(None, {})  # type: ignore[arg-type]
    assert insert(bell, clock)
    assert not insert(bell, clock)
    row = clock.now
    clock.pass_by(WINDOW - TICK / 2)
    assert not insert(bell, clock, fails=True)  # it was to tell
    clock.pass_by(10 * WINDOW)
    assert len(rings) == 1
    assert rings[0] - row <= 2 * PATIENCE_SECONDS + 1e-9
