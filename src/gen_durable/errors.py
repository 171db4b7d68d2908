"""Every error that gen_durable raises, as one tree.

::

    GenDurableError
    ├── DefinitionError          a machine or job class is wrong (also a TypeError)
    ├── ConfigurationError       a setting of the engine is wrong (also a ValueError)
    ├── InvalidArgument          an argument of a call is wrong (also a ValueError)
    │   ├── InvalidState         state that can't be stored or does not have its declared type
    │   └── InvalidPayload       a result or payload that can't be stored
    ├── InvalidOutcome           a step returned something that is not an outcome, or a wrong one
    ├── StateDecodeError         a stored state does not fit its machine any more
    ├── DuplicateInstance        the key is taken (carries the existing id)
    ├── NoSuchInstance           no instance has this id or key
    ├── NoSuchSchedule           no schedule has this name
    ├── InstanceFailed           the awaited instance ended as failed (carries its error)
    ├── InstanceCancelled        the awaited instance was cancelled
    ├── StillRunning             the wait timed out; the instance goes on (also a TimeoutError)
    ├── TransactionError         ctx.conn or ctx.session can't be used like this (also a RuntimeError)
    │   └── TransactionEnded     a step has ended the transaction that is to hold its outcome
    ├── EngineStateError         used before start, after stop, or started twice
    ├── TooManySteps             a test's drain does not come to an end (names the instance and the step)
    └── DatabaseError
        ├── DatabaseUnreachable  no connection (names host, port, database and user; never the password)
        ├── SchemaMissing        the schema was never migrated
        ├── SchemaVersionError   the schema has another version than this package needs
        └── EmbeddedError        the development server can't be started

Attributes carry the values, the message names them and says what to do.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ConfigurationError",
    "DatabaseError",
    "DatabaseUnreachable",
    "DefinitionError",
    "DuplicateInstance",
    "EmbeddedError",
    "EngineStateError",
    "GenDurableError",
    "InstanceCancelled",
    "InstanceFailed",
    "InvalidArgument",
    "InvalidOutcome",
    "InvalidPayload",
    "InvalidState",
    "NoSuchInstance",
    "NoSuchSchedule",
    "SchemaMissing",
    "SchemaVersionError",
    "StateDecodeError",
    "StillRunning",
    "TooManySteps",
    "TransactionEnded",
    "TransactionError",
]


class GenDurableError(Exception):
    """The base of every error of this package."""


class DefinitionError(GenDurableError, TypeError):
    """A machine or job can't be declared like this; raised when its class is defined."""


class ConfigurationError(GenDurableError, ValueError):
    """A setting of the engine is wrong; raised when the engine is built or started."""


class InvalidArgument(GenDurableError, ValueError):
    """An argument of a client call is wrong; nothing was written."""


class InvalidState(InvalidArgument):
    """State that can't be stored: a wrong type, NaN, a NUL character, too large."""


class InvalidPayload(InvalidArgument):
    """A result or payload that can't be stored as JSON."""


class InvalidOutcome(GenDurableError):
    """A step returned something that is not an outcome, or an outcome that does not fit its machine."""


class StateDecodeError(GenDurableError):
    """A stored state does not decode into its machine's fields any more."""


class DuplicateInstance(GenDurableError):
    """Another instance holds the key.

    Attributes:
        key: the key that is taken.
        existing_id: the id of the instance that holds it.
    """

    def __init__(self, key: str, existing_id: int) -> None:
        super().__init__(
            f"the key {key!r} is taken by instance {existing_id}; "
            'pass on_conflict="existing" to get that one, or use another key'
        )
        self.key = key
        self.existing_id = existing_id


class NoSuchInstance(GenDurableError):
    """No instance has this id or key; or none that is live, where the call needs one.

    Attributes:
        target: the id or key that was asked for.
    """

    def __init__(self, target: int | str, *, live: bool = False) -> None:
        what = f"id {target}" if isinstance(target, int) else f"key {target!r}"
        if live:
            super().__init__(f"there is no live instance with {what}; it never existed or it has ended")
        else:
            super().__init__(f"there is no instance with {what}; it never existed or its retention has passed")
        self.target = target


class NoSuchSchedule(GenDurableError):
    """No schedule has this name.

    Attributes:
        name: the name that was asked for.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no schedule {name!r}; `gen-durable schedule list` shows those that there are")
        self.name = name


class InstanceFailed(GenDurableError):
    """The instance ended as ``failed``.

    Attributes:
        instance_id: its id.
        error: the stored error: a dict with ``type``, ``message`` and ``traceback``.
    """

    def __init__(self, instance_id: int, error: dict[str, Any] | None) -> None:
        reason = "no reason recorded" if not error else f"{error.get('type')}: {error.get('message')}"
        super().__init__(f"instance {instance_id} failed: {reason}")
        self.instance_id = instance_id
        self.error = error


class InstanceCancelled(GenDurableError):
    """The instance was cancelled.

    Attributes:
        instance_id: its id.
        error: the recorded reason, as a dict, or None.
    """

    def __init__(self, instance_id: int, error: dict[str, Any] | None = None) -> None:
        reason = f": {error.get('message')}" if error else ""
        super().__init__(f"instance {instance_id} was cancelled{reason}")
        self.instance_id = instance_id
        self.error = error


class StillRunning(GenDurableError, TimeoutError):
    """The instance did not end in time; it goes on, so ask again with the same id.

    Attributes:
        instance_id: its id.
        status: its status when the wait ended.
    """

    def __init__(self, instance_id: int, status: str, timeout: float) -> None:
        super().__init__(
            f"instance {instance_id} is still {status} after {timeout:g} s; it goes on, ask again with the same id"
        )
        self.instance_id = instance_id
        self.status = status


class TransactionError(GenDurableError, RuntimeError):
    """A step asked for a transaction that it does not have, or left its own in a state that can't be committed."""


class TransactionEnded(TransactionError):
    """A step ended the transaction that is to hold its outcome, or was about to; its instance fails at once."""


class EngineStateError(GenDurableError, RuntimeError):
    """The engine was used before it was started or after it was stopped, or was started twice."""


class TooManySteps(GenDurableError):
    """``testing.drain`` ran its ``max_steps`` steps, and there is still something to do.

    Attributes:
        instance_id, machine, step: what was to run next.
        max_steps: the limit.
    """

    def __init__(self, max_steps: int, instance_id: int, key: str | None, machine: str, step: str, runs: int) -> None:
        shown = "" if key is None else f", key {key!r}"
        super().__init__(
            f"drain: {max_steps} steps have run, and instance {instance_id} ({machine}{shown}) stands at {step!r}, "
            f"which it has run {runs} times: does it ever end? If there is so much to do, give a larger max_steps="
        )
        self.instance_id = instance_id
        self.machine = machine
        self.step = step
        self.max_steps = max_steps


class DatabaseError(GenDurableError):
    """The database can't be used as it is."""


class DatabaseUnreachable(DatabaseError):
    """No connection to the database could be made."""


class SchemaMissing(DatabaseError):
    """The schema does not exist or was never migrated."""


class SchemaVersionError(DatabaseError):
    """The schema's version is not the one that this package works with."""


class EmbeddedError(DatabaseError):
    """The development server can't be found or started."""
