"""The retry policy: its delays, whom it retries, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_durable.errors import ConfigurationError
from gen_durable.retry import LONGEST, Backoff

STEADY = Backoff(jitter=False)


def test_the_defaults_double_from_one_second_to_five_minutes() -> None:
    """Section 4: 20 attempts, 1 s doubling to at most 300 s, with jitter."""
    delays = [STEADY.delay_after(attempt, OSError()) for attempt in range(19)]
    assert delays[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert set(delays[9:]) == {300.0}
    assert STEADY.delay_after(19, OSError()) is None
    assert Backoff().jitter


@pytest.mark.parametrize(("drawn", "delay"), [(0.0, 4.0), (0.5, 6.0), (0.999, 7.996)])
def test_jitter_spreads_between_half_and_whole(drawn: float, delay: float) -> None:
    assert Backoff().delay_after(3, OSError(), lambda: drawn) == pytest.approx(delay)


def test_jitter_draws_anew() -> None:
    delays = {Backoff().delay_after(8, OSError()) for _ in range(50)}
    assert len(delays) > 1
    assert all(delay is not None and 128 <= delay <= 256 for delay in delays)


@given(
    st.integers(0, 10**6),
    st.floats(0, LONGEST),
    st.floats(1, 1e308),
    st.floats(0, LONGEST),
    st.floats(0, 1, exclude_max=True),
)
def test_no_delay_overflows_or_leaves_its_bounds(
    attempt: int, initial: float, factor: float, extra: float, drawn: float
) -> None:
    maximum = max(initial, extra)
    policy = Backoff(max_attempts=10**7, initial=initial, factor=factor, maximum=maximum)
    delay = policy.delay_after(attempt, OSError(), lambda: drawn)
    assert delay is not None
    assert min(initial, maximum) / 2 <= delay * (1 + 1e-9) or initial == 0
    assert 0 <= delay <= maximum


@pytest.mark.parametrize(("initial", "delay"), [(1.0, 300.0), (0.0, 0.0)])
def test_attempt_ten_thousand(initial: float, delay: float) -> None:
    assert Backoff(max_attempts=20_000, initial=initial, jitter=False).delay_after(10_000, OSError()) == delay


def test_one_attempt_is_no_retry() -> None:
    assert Backoff(max_attempts=1).delay_after(0, OSError()) is None
    assert Backoff(max_attempts=2).delay_after(0, OSError()) is not None
    assert Backoff(max_attempts=2).delay_after(1, OSError()) is None
    assert Backoff(max_attempts=2).delay_after(7, OSError()) is None


def test_only_the_right_errors_are_retried() -> None:
    policy = Backoff(retry_on=(OSError, ValueError), stop_on=(FileNotFoundError,), jitter=False)
    assert policy.delay_after(0, TimeoutError()) == 1.0
    assert policy.delay_after(0, ValueError()) == 1.0
    assert policy.delay_after(0, FileNotFoundError()) is None
    assert policy.delay_after(0, KeyError()) is None
    assert STEADY.delay_after(0, KeyboardInterrupt()) is None


def test_one_class_or_any_iterable_of_classes() -> None:
    policy = Backoff(retry_on=OSError, stop_on=[KeyError])  # type: ignore[arg-type]
    assert policy.retry_on == (OSError,)
    assert policy.stop_on == (KeyError,)


BAD: list[tuple[str, Any, str]] = [
    *(("max_attempts", value, "must be an int of 1 or more") for value in (0, -1, 1.5, True, "3", None, math.inf)),
    *(("initial", value, "must be a finite number of 0 or more") for value in (-1, math.nan, math.inf, "1", None)),
    *(("factor", value, "must be a finite number of 1 or more") for value in (0.5, 0, math.nan, True, 10**400)),
    *(("maximum", value, "must be a finite number of 0 or more") for value in (-1, math.inf, "x")),
    ("maximum", 0.5, r"initial \(1 s\) is above maximum \(0.5 s\)"),
    ("jitter", 1, "must be True or False"),
    *(("retry_on", value, "must hold classes of exceptions") for value in (int, (OSError, 3), OSError(), None, "x")),
    ("stop_on", (int,), "must hold classes of exceptions"),
]


@pytest.mark.parametrize(("name", "value", "says"), BAD, ids=range(len(BAD)))
def test_bad_values_are_refused_with_name_and_value(name: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^Backoff: .*{says}") as caught:
        Backoff(**{name: value})
    assert name in str(caught.value)


def test_a_policy_is_a_frozen_value() -> None:
    assert Backoff(initial=2) == Backoff(initial=2.0)
    assert hash(Backoff()) == hash(Backoff())
    with pytest.raises(dataclasses.FrozenInstanceError):
        STEADY.initial = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Backoff(3)  # type: ignore[misc]
