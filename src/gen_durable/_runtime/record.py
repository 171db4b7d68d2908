"""An outcome on its way to the database: one element of a commit's JSON list."""

from __future__ import annotations

import math
import traceback
from typing import Any

import msgspec

from gen_durable.status import TransitionKind

__all__ = ["BACK", "END", "JOIN", "ON", "WAIT", "Record", "encode_records", "error_json", "reason_json"]

ON, BACK, END, WAIT, JOIN = range(5)
MESSAGE_CHARACTERS = 2_000
TRACEBACK_CHARACTERS = 8_000

encode_records = msgspec.json.Encoder().encode


class Record(msgspec.Struct, omit_defaults=True):
    """The fields of ``commit.sql``'s parameter, with its defaults: most records end a job, and are short."""

    id: int
    rev: int
    op: int = END
    step: str | None = None
    state: msgspec.Raw | None = None
    lane: int | None = None
    priority: int | None = None
    delay: float | None = None
    attempt: int | None = None
    crashes: int | None = None
    result: msgspec.Raw | None = None
    keep: float | None = None
    error: dict[str, Any] | None = None
    kind: int = 3
    ran: str | None = None
    tried: int = 0
    took: float | None = None
    history: int = 1
    signals: list[int] | None = None
    afresh: list[int] | None = None
    awaits: tuple[str, ...] | None = None
    children: int | None = None
    spare: int | None = None
    rest: bool | None = None
    limits: bool | None = None
    gate: str | None = None
    rate: str | None = None
    weight: int | None = None
    mark: str | None = None  # of the transaction that it is to commit in

    def fail(self, error: dict[str, Any], keep: float) -> None:
        """Turns the record into one that ends the instance as failed: for an outcome that the database refuses."""
        self.op, self.kind = END, int(TransitionKind.FAILED)
        self.state = self.result = self.step = self.signals = self.afresh = self.awaits = self.children = None
        self.limits = None
        self.error, self.keep = error, None if math.isinf(keep) else keep


def _clean(text: str) -> str:
    """Text that Postgres can hold: no NUL, no lone surrogates."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def error_json(error: BaseException) -> dict[str, Any]:
    """What is kept of an error: its type, its message and the end of its traceback, cut to a sane length."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  # a user's __str__ may do anything
        message = "(its message could not be made)"
    kept = {"type": _clean(name), "message": _clean(message[:MESSAGE_CHARACTERS])}
    if error.__traceback__ is not None or error.__cause__ is not None:
        kept["traceback"] = _clean(_cut("".join(traceback.format_exception(error, limit=-20))))
    return kept


def _cut(text: str) -> str:
    """Both ends of a long traceback: a long message must not push the frames out, nor many frames the message."""
    half = TRACEBACK_CHARACTERS // 2
    return text if len(text) <= TRACEBACK_CHARACTERS else f"{text[:half]}\n...\n{text[-half:]}"


def reason_json(kind: str, reason: str) -> dict[str, Any]:
    """What is kept of an end that was not an exception."""
    return {"type": kind, "message": _clean(reason[:MESSAGE_CHARACTERS])}
