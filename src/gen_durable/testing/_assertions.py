"""Assertions on instances, with messages that show what there is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NoReturn

from gen_durable.client import Handle
from gen_durable.engine import Engine
from gen_durable.errors import InvalidArgument, NoSuchInstance
from gen_durable.snapshot import Snapshot
from gen_durable.status import Status

__all__ = ["assert_awaiting", "assert_done", "assert_failed", "assert_status"]

HISTORY = 10  # transitions that a message shows
INSTANCES = 10  # that a message lists when the one asked for is not there
CHARACTERS = 500  # of a state or a result
TRACEBACK_LINES = 12

_ANY: Any = object()


async def assert_status(engine: Engine, target: int | str | Handle, status: str) -> Snapshot:
    """The instance has this status.

    Args:
        target: an id, a key, or the handle of an insert.

    Raises:
        AssertionError: it has another one, or there is no such instance; the message shows step, attempt, state, error
            and the end of the history.
        InvalidArgument: there is no such status.
    """
    __tracebackhide__ = True
    labels = list(dict.fromkeys(known.label for known in Status))
    if status not in labels:
        raise InvalidArgument(f"there is no status {status!r}; the statuses are {', '.join(labels)}")
    found = await _find(engine, target)
    if found.status != status:
        await _fail(engine, found, f"is {found.status}, not {status}")
    return found


async def assert_awaiting(engine: Engine, target: int | str | Handle, *names: str) -> Snapshot:
    """The instance is parked until a signal comes: of exactly these names, where some are given.

    Raises:
        AssertionError: it is not, or awaits others; see :func:`assert_status`.
    """
    __tracebackhide__ = True
    found = await assert_status(engine, target, "awaiting_signal")
    if names and set(names) != set(found.awaits or ()):
        await _fail(engine, found, f"awaits {_names(found.awaits or ())}, not {_names(names)}")
    return found


async def assert_done(engine: Engine, target: int | str | Handle, *, result: Any = _ANY) -> Snapshot:
    """The instance has ended as ``done``: with this result (as plain JSON values), where one is given.

    Raises:
        AssertionError: it has not, or has another result; see :func:`assert_status`.
    """
    __tracebackhide__ = True
    found = await assert_status(engine, target, "done")
    if result is not _ANY and found.result != result:
        await _fail(engine, found, f"ended with the result {_short(found.result)}, not {_short(result)}")
    return found


async def assert_failed(engine: Engine, target: int | str | Handle, *, match: str | None = None) -> Snapshot:
    """The instance has ended as ``failed``.

    Args:
        match: a regular expression that must be found in ``type: message`` of its error, as ``pytest.raises`` does it.

    Raises:
        AssertionError: it has not, or with another error; see :func:`assert_status`.
    """
    __tracebackhide__ = True
    found = await assert_status(engine, target, "failed")
    if match is not None and not re.search(match, _error(found)):
        await _fail(engine, found, f"failed, but its error does not match {match!r}")
    return found


async def _find(engine: Engine, target: int | str | Handle) -> Snapshot:
    __tracebackhide__ = True
    wanted = target.id if isinstance(target, Handle) else target
    try:
        return await engine.get(wanted)
    except NoSuchInstance:
        pass
    newest = await engine.list(limit=INSTANCES)
    listed = [f"\n  {_title(one)}: {one.status}" for one in newest.items]
    there = f"the newest are{''.join(listed)}" if listed else "there are none"
    raise AssertionError(f"there is no instance with the {_kind(wanted)} {wanted!r}; {there}")


async def _fail(engine: Engine, found: Snapshot, what: str) -> NoReturn:
    __tracebackhide__ = True
    lines = [
        f"{_title(found)} {what}",
        f"  step {found.step!r}, attempt {found.attempt}, crashes {found.crashes}, queue {found.queue!r}, "
        f"priority {found.priority}",
    ]
    if found.due_at is not None and found.status != "executing":
        lines.append(f"  {'due' if found.status == 'runnable' else 'its timeout is'} at {found.due_at.isoformat()}")
    if found.awaits is not None:
        lines.append(f"  awaits {_names(found.awaits)}")
    if found.children_left is not None:
        lines.append(f"  waits for the ends of {found.children_left} more children")
    lines.append(f"  state {_short(found.state)}")
    if found.result is not None:
        lines.append(f"  result {_short(found.result)}")
    if found.error is not None:
        lines.append(f"  error {_error(found)}")
        trace = str(found.error.get("traceback", "")).rstrip().splitlines()[-TRACEBACK_LINES:]
        lines += [f"    {line}" for line in trace]
    history = await engine.history(found.id)
    if history:
        lines.append(f"  history (the last {min(HISTORY, len(history))} of {len(history)}):")
    for one in history[-HISTORY:]:
        error = f", {_type_and_message(one.error)}" if one.error else ""
        lines.append(f"    {one.at.isoformat()}  {one.step!r}, attempt {one.attempt}: {one.outcome}{error}")
    raise AssertionError("\n".join(lines))


def _title(found: Snapshot) -> str:
    key = "" if found.key is None else f", key {found.key!r}"
    return f"instance {found.id} ({found.machine}{key})"


def _kind(target: int | str) -> str:
    return "key" if isinstance(target, str) else "id"


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names)) or "nothing"


def _error(found: Snapshot) -> str:
    return "none" if found.error is None else _type_and_message(found.error)


def _type_and_message(error: dict[str, Any]) -> str:
    return f"{error.get('type')}: {error.get('message')}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}…"
