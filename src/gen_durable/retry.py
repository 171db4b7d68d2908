"""When a failed step runs again: the retry policy, as data."""

from __future__ import annotations

import math
import random as _random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gen_durable.errors import ConfigurationError

__all__ = ["Backoff"]

LONGEST = 100 * 365.25 * 86400

ErrorTypes = type[BaseException] | Iterable[type[BaseException]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Backoff:
    """Retry a failed step with exponentially growing delays.

    After the run number ``attempt`` (0 is the first) has failed, the step waits::

        whole = min(maximum, initial * factor ** attempt)
        delay = whole                                without jitter
        delay = whole / 2 + random() * whole / 2     with jitter

    which is the "equal jitter" of Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog,
    2015): never less than half of the whole delay, and the other half spread out, so that steps that
    failed together don't come back together.

    Attributes:
        max_attempts: the number of runs in all, the first included; at least 1 (which is no retry).
        initial: the delay after the first failure, in seconds.
        factor: what each next delay is multiplied with; at least 1.
        maximum: no delay is longer, in seconds; at least ``initial``.
        jitter: spread the delays out.
        retry_on: only errors of these classes are retried; one class or several.
        stop_on: errors of these classes are never retried, also when they are in ``retry_on``.

    Raises:
        ConfigurationError: a value is wrong.

    >>> Backoff(initial=10, jitter=False).delay_after(2, OSError())
    40.0
    """

    max_attempts: int = 20
    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 300.0
    jitter: bool = True
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    stop_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        put = object.__setattr__
        attempts = self.max_attempts
        if not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1:
            raise ConfigurationError(f"Backoff: max_attempts must be an int of 1 or more, not {attempts!r}")
        put(self, "initial", _number("initial", self.initial, at_least=0))
        put(self, "factor", _number("factor", self.factor, at_least=1))
        put(self, "maximum", _number("maximum", self.maximum, at_least=0))
        if self.maximum > LONGEST:
            raise ConfigurationError(
                f"Backoff: maximum must be at most 100 years ({LONGEST:.0f} s), not {self.maximum!r}"
            )
        if self.initial > self.maximum:
            raise ConfigurationError(
                f"Backoff: initial ({self.initial:g} s) is above maximum ({self.maximum:g} s); raise maximum"
            )
        if not isinstance(self.jitter, bool):
            raise ConfigurationError(f"Backoff: jitter must be True or False, not {self.jitter!r}")
        put(self, "retry_on", _error_types("retry_on", self.retry_on))
        put(self, "stop_on", _error_types("stop_on", self.stop_on))

    def delay_after(
        self, attempt: int, error: BaseException, random: Callable[[], float] = _random.random
    ) -> float | None:
        """The seconds to wait after the run number ``attempt`` (0-based) failed with ``error``.

        None means give up: this was the last attempt, or the error is not one to retry.
        """
        if attempt + 1 >= self.max_attempts or isinstance(error, self.stop_on):
            return None
        if not isinstance(error, self.retry_on):
            return None
        try:
            whole = min(self.maximum, self.initial * self.factor**attempt)
        except OverflowError:
            whole = self.maximum if self.initial else 0.0
        return whole / 2 + random() * whole / 2 if self.jitter else whole


def _number(name: str, value: object, *, at_least: float) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and number >= at_least:
            return number
    raise ConfigurationError(f"Backoff: {name} must be a finite number of {at_least:g} or more, not {value!r}")


def _error_types(name: str, value: ErrorTypes) -> tuple[type[BaseException], ...]:
    classes = (value,) if isinstance(value, type) else value
    found = tuple(classes) if isinstance(classes, Iterable) else ()
    if isinstance(classes, Iterable) and all(isinstance(c, type) and issubclass(c, BaseException) for c in found):
        return found
    raise ConfigurationError(f"Backoff: {name} must hold classes of exceptions, not {value!r}")
