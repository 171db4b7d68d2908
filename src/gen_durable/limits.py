"""Limits: how fast a rate lets steps start, and the keys under which instances share a limit.

A key is a name, ``"account:7"``, or a name and a partition of it, ``("stripe", tenant)``: each partition has a limit of
its own, which is configured once, for the name. A partition's number and its digits are the same: ``7`` and ``"7"``.

Instances of one key wait in one line. A line is stored as one text: ``c`` (concurrency) or ``r`` (rate), the name, and
for a partition a separator and the partition.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeAlias

from gen_durable._checks import MAX_NAME_BYTES, MAX_SECONDS, check_name, check_seconds, shown
from gen_durable.errors import ConfigurationError, DefinitionError, GenDurableError, InvalidArgument

__all__ = ["LimitKey", "Rate"]

SEPARATOR: Final = "\x1f"
MAX_TOKENS: Final = 2**31 - 1

LimitKey: TypeAlias = str | tuple[str, str | int]
"""``"account:7"``: a name; ``("stripe", tenant)``: a name and a partition. At most 512 bytes in all."""
DeclaredKey: TypeAlias = LimitKey | Callable[[Any], LimitKey | None] | None
"""What a class says: a key, a function of the machine that answers with one (or None: no limit), or None."""
DeclaredWeight: TypeAlias = int | Callable[[Any], int | None] | None
"""What a class says: a number of tokens, a function of the machine that answers with one, or None: 1."""


@dataclass(frozen=True, slots=True, init=False)
class Rate:
    """A token bucket: ``limit`` tokens come in ``per`` seconds, and at most ``burst`` wait to be used.

    Each start of a step takes its ``weight``, 1 by default. Over any span no more is taken than what came in it, and
    ``burst``: ``Rate(100, per=60)`` lets at most 100 start at once, and 100 more in each minute.

    Attributes:
        limit: tokens, above 0.
        per: the seconds (or a timedelta) in which so many come, by the database's clock.
        burst: what the bucket holds, at least 1; by default ``limit``, rounded up.

    Raises:
        ConfigurationError: a value is wrong.
    """

    limit: float
    per: float
    burst: int

    def __init__(self, limit: float, per: float | timedelta = 1.0, burst: int | None = None) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int | float):
            raise ConfigurationError(f"Rate: limit must be a number of tokens, not {shown(limit)}")
        if not 0 < limit <= MAX_TOKENS:
            raise ConfigurationError(f"Rate: limit must be above 0 and at most {MAX_TOKENS} tokens, not {shown(limit)}")
        seconds = check_seconds(per, "Rate: per", error=ConfigurationError, positive=True)
        tokens = math.ceil(limit) if burst is None else check_weight(burst, "Rate: burst", ConfigurationError)
        if not tokens * seconds <= MAX_SECONDS * limit:
            raise ConfigurationError(
                f"Rate: with limit={limit!r}, per={per!r} and a burst of {tokens} the bucket would take more than "
                "100 years to fill; use a higher limit, a shorter per or a smaller burst"
            )
        put = object.__setattr__
        put(self, "limit", float(limit))
        put(self, "per", seconds)
        put(self, "burst", tokens)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one step of one instance is held to.

    Attributes:
        gate: the line of its concurrency key, or None.
        rate: the line of its rate limit, or None.
        weight: the tokens that it takes there; None is 1.
    """

    gate: str | None
    rate: str | None
    weight: int | None


class RateRefused(InvalidArgument):
    """A rate limit is unknown, or never holds so many tokens, as far as this process knows; the client asks again."""


NO_LIMITS: Final = Limits(None, None, None)

Encode: TypeAlias = Callable[[Any, str, type[GenDurableError]], Any]
"""``concurrency_line``, ``rate_line`` or ``check_weight``."""


# Keys and lines -------------------------------------------------------------------------------------


def check_limit_name(name: object, what: str, error: type[GenDurableError]) -> str:
    """``name`` when a limit, or a partition of one, can have it; else ``error``."""
    checked = check_name(name, what, error=error)
    if SEPARATOR in checked:
        raise error(f"{what} {shown(name)} has the character \\x1f, which separates names from partitions; remove it")
    return checked


def concurrency_line(key: object, what: str, error: type[GenDurableError] = InvalidArgument) -> str:
    """The line of a concurrency key; ``what`` names it in the ``error`` that a wrong one raises."""
    return "c" + _encoded(key, what, error)


def rate_line(key: object, what: str, error: type[GenDurableError] = InvalidArgument) -> str:
    """The line of a rate limit's key; ``what`` names it in the ``error`` that a wrong one raises."""
    return "r" + _encoded(key, what, error)


def name_of_line(line: str) -> str:
    """The name of the limit to which a line belongs."""
    return line[1:].partition(SEPARATOR)[0]


def check_weight(value: object, what: str, error: type[GenDurableError] = InvalidArgument) -> int:
    """``value`` when it is a number of tokens: an int from 1 to 2147483647; else ``error``."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_TOKENS:
        raise error(f"{what} must be a whole number of tokens from 1 to {MAX_TOKENS}, not {shown(value)}")
    return int(value)


def _encoded(key: object, what: str, error: type[GenDurableError]) -> str:
    if isinstance(key, str):
        return check_limit_name(key, what, error)
    if not isinstance(key, tuple) or len(key) != 2:
        raise error(f'{what} must be a name or (name, partition), not {shown(key)}; like "account:7" or ("stripe", 7)')
    name, partition = key
    if isinstance(partition, int) and not isinstance(partition, bool):
        if not -(2**63) <= partition < 2**63:
            raise error(f"{what}: the partition must fit into 64 bits, unlike {shown(partition)}; use its text")
        text = str(int(partition))
    elif isinstance(partition, str):
        text = check_limit_name(partition, f"{what}: the partition", error)
    else:
        raise error(f"{what}: the partition must be a string or an int, not {shown(partition)}")
    whole = SEPARATOR.join((check_limit_name(name, f"{what}: the name", error), text))
    if (size := len(whole.encode())) > MAX_NAME_BYTES:
        raise error(f"{what} must be at most {MAX_NAME_BYTES} bytes of UTF-8 in all; {shown(key)} has {size}")
    return whole


# Declarations ---------------------------------------------------------------------------------------


def check_declared(value: Any, what: str, encode: Encode) -> None:
    """Refuses what can't be declared as a key or a weight; what a function will answer is checked when it does.

    Raises:
        DefinitionError: a wrong value, or a function that can't be called with the machine alone.
    """
    if value is None:
        return
    if isinstance(value, type) or not callable(value):
        encode(value, what, DefinitionError)
        return
    if inspect.iscoroutinefunction(value) or inspect.isgeneratorfunction(value) or inspect.isasyncgenfunction(value):
        raise DefinitionError(f"{what} must be a plain function of the machine, not {shown(value)}")
    try:
        inspect.signature(value).bind(None)
    except TypeError:
        raise DefinitionError(
            f"{what} is called with the machine alone, like lambda self: self.tenant; {shown(value)} can't be"
        ) from None
    except ValueError:  # one without a signature, written in C
        return


def evaluate(declared: Any, machine: object, what: str, encode: Encode) -> Any:
    """What a declaration comes to for one machine: a line or a weight, or None.

    Raises:
        InvalidArgument: its function raised an error, or answered with what can't be; ``what`` names it.
    """
    answer = declared
    if callable(declared):
        try:
            answer = declared(machine)
        except Exception as error:
            raise InvalidArgument(f"{what}: its function raised {type(error).__name__}: {error}") from error
        if inspect.iscoroutine(answer):
            answer.close()
    return None if answer is None else encode(answer, what, InvalidArgument)


def check_known(limits: Limits, known: Mapping[str, float]) -> None:
    """Refuses a rate limit that nobody has configured, and a weight that its bucket never holds.

    Args:
        limits: of a step.
        known: the burst of each rate limit that there is.

    Raises:
        RateRefused: the message names the limit.
    """
    if limits.rate is None:
        return
    name, weight = name_of_line(limits.rate), limits.weight or 1
    if (problem := unknown_rate(name, weight, known)) is not None:
        raise RateRefused(problem)


def unknown_rate(name: str, weight: int, known: Mapping[str, float]) -> str | None:
    """Why a step can never start under a rate limit, and the mend; None where it can."""
    burst = known.get(name)
    if burst is None:
        listed = ", ".join(sorted(known)) or "none"
        return f"there is no rate limit {name!r} (known: {listed}): name it in rate_limits= of the engine"
    if weight > burst:
        return (
            f"weight={weight} is more than the rate limit {name!r} ever holds, a burst of {burst:g}: "
            "use a smaller weight or a larger burst"
        )
    return None
