"""Outcomes are values that are checked where they are built."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from datetime import timedelta
from functools import partial
from typing import Any, get_args

import pytest

from gen_durable.errors import InvalidArgument
from gen_durable.outcome import (
    KEEP,
    MAX_SECONDS,
    Cancel,
    Done,
    Next,
    Outcome,
    Retry,
    RetryAfter,
    Sleep,
    Stop,
    check_name,
)


class Shop:
    async def ship(self, ctx: object) -> None: ...

    def __call__(self) -> None: ...


@pytest.mark.parametrize("step", [Shop().ship, Shop.ship, "ship"])
def test_a_step_is_a_method_or_a_name(step: Any) -> None:
    """R8: step references are methods; a plain string is accepted too."""
    assert Next(step).step == "ship"
    assert Sleep(1, step).then == "ship"
    assert Sleep(seconds=1, then=step).then == "ship"


@pytest.mark.parametrize("step", [None, 3, Shop, Shop(), lambda: None, partial(Shop.ship), b"ship", ""])
def test_anything_else_is_not_a_step(step: Any) -> None:
    """R8: the message says what came."""
    with pytest.raises(InvalidArgument, match=r"^Next"):
        Next(step)
    with pytest.raises(InvalidArgument, match=r"^Sleep: then"):
        Sleep(1, step)


def test_the_message_for_a_non_step_shows_it_and_the_mend() -> None:
    with pytest.raises(InvalidArgument, match=r"^Next got 3 \(int\), which is not a step; give a step of the machine"):
        Next(3)  # type: ignore[arg-type]


def test_a_called_step_is_named_and_closed() -> None:
    """The coroutine of ``Next(self.ship(ctx))`` is closed, so nothing warns that it was never awaited."""
    with pytest.raises(InvalidArgument, match=r"give the method itself, self\.ship, without calling it"):
        Next(Shop().ship(None))  # type: ignore[arg-type]


def test_what_is_not_given_is_kept() -> None:
    outcome = Next("ship")
    assert (outcome.queue, outcome.priority, outcome.delay) == (KEEP, KEEP, None)
    assert repr(outcome) == "Next('ship')"


def test_options_of_next() -> None:
    outcome = Next("ship", queue="fast", priority=-5, delay=timedelta(minutes=1))
    assert (outcome.queue, outcome.priority, outcome.delay) == ("fast", -5, 60.0)
    assert repr(outcome) == "Next('ship', queue='fast', priority=-5, delay=60.0)"
    assert repr(Next("a", priority=0, delay=0)) == "Next('a', priority=0, delay=0.0)"


DELAYS: list[tuple[str, Any]] = [
    ("Next: delay", lambda delay: Next("ship", delay=delay).delay),
    ("Retry: delay", lambda delay: Retry(delay).delay),
    ("Sleep: seconds", lambda delay: Sleep(delay, "ship").seconds),
    ("RetryAfter: delay", lambda delay: RetryAfter(delay).delay),
]


@pytest.mark.parametrize(("what", "build"), DELAYS, ids=[what for what, _ in DELAYS])
class TestDelays:
    @pytest.mark.parametrize("delay", [0, 1.5, timedelta(milliseconds=1), MAX_SECONDS])
    def test_seconds_and_timedeltas_become_float_seconds(self, what: str, build: Any, delay: Any) -> None:
        seconds = build(delay)
        assert type(seconds) is float
        assert seconds == (delay.total_seconds() if isinstance(delay, timedelta) else delay)

    @pytest.mark.parametrize(
        ("delay", "says"),
        [
            (-1, r"must be 0 or more seconds, not -1 \(int\)"),
            (timedelta(seconds=-1), "must be 0 or more seconds"),
            (-(10**400), "must be 0 or more seconds"),
            (math.nan, "must be 0 or more seconds, not nan"),
            (math.inf, "must be at most 100 years"),
            (10**5000, r"must be at most 100 years .*, not a value \(int\)"),
            (MAX_SECONDS * 1.01, "must be at most 100 years"),
            (timedelta.max, "must be at most 100 years"),
            ("5", r"must be seconds \(a number\) or a timedelta, not '5' \(str\)"),
            (True, "must be seconds"),
            (b"1", "must be seconds"),
        ],
        ids=range(11),
    )
    def test_bad_delays(self, what: str, build: Any, delay: Any, says: str) -> None:
        with pytest.raises(InvalidArgument, match=f"^{what} {says}"):
            build(delay)


def test_none_is_a_delay_of_next_only() -> None:
    assert Next("ship", delay=None).delay is None
    assert Retry().delay == 0.0
    with pytest.raises(InvalidArgument, match=r"Retry: delay must be seconds .*, not None$"):
        Retry(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("priority", [-32768, 0, 32767])
def test_priorities(priority: int) -> None:
    assert Next("ship", priority=priority).priority == priority


@pytest.mark.parametrize("priority", [-32769, 32768, 1.0, True, "1", None])
def test_bad_priorities(priority: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"Next: priority must be .*-32768 to 32767"):
        Next("ship", priority=priority)


BAD_NAMES: list[tuple[Any, str]] = [
    ("", "must not be empty"),
    ("é" * 257, "must be at most 512 bytes of UTF-8; .* has 514"),
    ("a\0", "has a NUL character"),
    ("\ud800", "has a lone surrogate"),
    (3, r"must be a string, not 3 \(int\)"),
    (None, "must be a string, not None"),
]


@pytest.mark.parametrize(("name", "says"), BAD_NAMES, ids=range(len(BAD_NAMES)))
def test_bad_names(name: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=f"Next: queue .*{says}"):
        Next("ship", queue=name)
    with pytest.raises(KeyError):  # another class of error, for other callers
        check_name(name, "it", error=KeyError)  # type: ignore[arg-type]


def test_the_longest_name() -> None:
    assert Next("ship", queue="é" * 256).queue == "é" * 256


def test_done_takes_any_result() -> None:
    assert Done().result is None
    assert Done({"a": 1}).result == {"a": 1}
    assert repr(Done(3)) == "Done(result=3)"


def test_a_reason_is_text() -> None:
    assert Stop("why").reason == "why"
    assert Cancel("why").reason == str(Cancel("why")) == "why"
    assert Cancel().reason
    for build in (Stop, Cancel):
        with pytest.raises(InvalidArgument, match=rf"{build.__name__}: reason must be a string.*ValueError.*use str"):
            build(ValueError("x"))  # type: ignore[arg-type]


def test_retry_after_says_its_delay() -> None:
    assert str(RetryAfter(timedelta(seconds=90))) == "retry after 90 s"
    assert issubclass(RetryAfter, Exception)
    assert issubclass(Cancel, Exception)


@pytest.mark.parametrize("outcome", [Next("a", queue="q"), Retry(1), Sleep(1, "a"), Done(1), Stop("x")], ids=repr)
def test_outcomes_are_frozen_values(outcome: Any) -> None:
    assert isinstance(outcome, get_args(Outcome))
    assert outcome == copy.deepcopy(outcome) == pickle.loads(pickle.dumps(outcome))
    assert hash(outcome) == hash(copy.copy(outcome))
    assert not hasattr(outcome, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(outcome, dataclasses.fields(outcome)[0].name, "other")


def test_keep_stays_itself() -> None:
    assert pickle.loads(pickle.dumps(KEEP)) is KEEP
    assert repr(KEEP) == "KEEP"
