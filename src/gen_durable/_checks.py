"""Checks of values that many calls take: seconds, names, priorities."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Final, TypeAlias

from gen_durable.errors import GenDurableError, InvalidArgument

__all__ = ["MAX_NAME_BYTES", "MAX_SECONDS", "Seconds", "check_name", "check_priority", "check_seconds", "shown"]

MAX_NAME_BYTES: Final = 512
MAX_SECONDS: Final = 100 * 365.25 * 86400
"""The longest delay, 100 years: a due time past the year 9999 could be written but never read back."""
MIN_PRIORITY: Final = -32768
MAX_PRIORITY: Final = 32767

Seconds: TypeAlias = float | timedelta


def check_seconds(
    value: object, what: str, *, error: type[GenDurableError] = InvalidArgument, positive: bool = False
) -> float:
    """``value`` (a number of seconds or a timedelta) as float seconds, at most 100 years.

    Raises:
        error: not a number or timedelta, NaN, negative (zero too, when ``positive``), or too long.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value) if abs(value) <= MAX_SECONDS else math.inf if value > 0 else -math.inf
    else:
        raise error(f"{what} must be seconds (a number) or a timedelta, not {shown(value)}")
    if not (seconds > 0 if positive else seconds >= 0):
        raise error(f"{what} must be {'above 0' if positive else '0 or more'} seconds, not {shown(value)}")
    if seconds > MAX_SECONDS:
        raise error(f"{what} must be at most 100 years ({MAX_SECONDS:.0f} s), not {shown(value)}")
    return seconds


def check_name(value: object, what: str, *, error: type[GenDurableError] = InvalidArgument) -> str:
    """``value`` when it is a name that can be stored: 1 to 512 bytes of UTF-8 without NUL; else ``error``."""
    if not isinstance(value, str):
        raise error(f"{what} must be a string, not {shown(value)}")
    if not value:
        raise error(f"{what} must not be empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise error(f"{what} {shown(value)} has a lone surrogate, which is not valid text; remove it") from None
    if size > MAX_NAME_BYTES:
        raise error(f"{what} must be at most {MAX_NAME_BYTES} bytes of UTF-8; {shown(value)} has {size}")
    if "\0" in value:
        raise error(f"{what} {shown(value)} has a NUL character, which Postgres can't store; remove it")
    return value


def check_priority(value: object, what: str, *, error: type[GenDurableError] = InvalidArgument) -> int:
    """``value`` when it is a priority: an int from -32768 to 32767, lower first; else ``error``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise error(f"{what} must be an int from {MIN_PRIORITY} to {MAX_PRIORITY}, not {shown(value)}")
    if not MIN_PRIORITY <= value <= MAX_PRIORITY:
        raise error(f"{what} must be from {MIN_PRIORITY} to {MAX_PRIORITY} (lower first), not {value}")
    return int(value)


def shown(value: object) -> str:
    """A value as messages show it: short, and with its type."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a broken __repr__ must not hide the message
        text = "a value"
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return text if value is None else f"{text} ({type(value).__name__})"
