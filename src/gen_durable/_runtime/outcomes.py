"""What comes of a step's outcome: the record that the flusher commits."""

from __future__ import annotations

import inspect
import math
import time
from typing import Any

import msgspec

from gen_durable._runtime.held import Held
from gen_durable._runtime.needs import Needs
from gen_durable._runtime.record import BACK, END, JOIN, ON, WAIT, Record, error_json, reason_json
from gen_durable.codec import encode_value
from gen_durable.config import Settings
from gen_durable.errors import InvalidOutcome, InvalidState
from gen_durable.machine import MachineSpec, StepSpec
from gen_durable.outcome import KEEP, Await, Done, Next, Outcome, Retry, RetryAfter, Sleep, Spawn, Stop
from gen_durable.status import TransitionKind

__all__ = ["Outcomes", "outcome_of"]

# A chain of steps of one instance gives way to others after its share.
CHAIN_STEPS = 100
CHAIN_SECONDS = 1.0


class Outcomes:
    """Makes records, for one worker."""

    def __init__(self, settings: Settings, needs: Needs, client: Any) -> None:
        self._settings = settings
        self._needs = needs
        self._client = client
        self.draining = False

    # What came back -------------------------------------------------------------------------------

    async def settle(self, held: Held, subject: Any, outcome: Any) -> Record:
        """The record of an outcome.

        Raises:
            InvalidOutcome, InvalidState, InvalidArgument: it can't be; that is the step's error.
        """
        state = self._state(held, subject)
        match outcome:
            case Next():
                return await self._next(held, subject, outcome, state)
            case Done(result=result):
                record = self.end(held, TransitionKind.DONE)
                record.state = state
                if result is not None:
                    what = f"the result of {held.spec.name}.{held.step}"
                    record.result = msgspec.Raw(encode_value(result, what, self._settings.max_state_bytes))
                return record
            case Retry(delay=delay):
                return self._back(held, TransitionKind.RETRY, held.step, delay, held.attempt + 1, state)
            case Sleep(seconds=seconds, then=then):
                self._check_step(held, then)
                record = self._back(held, TransitionKind.SLEEP, then, seconds, 0, state)
                return _progress(held, await self._limited(held, record, subject))
            case Await():
                return await self._limited(held, self._await_signal(held, outcome, state), subject)
            case Spawn():
                return await self._limited(held, await self._spawn(held, outcome, state), subject)
            case Stop(reason=reason):
                record = self.end(held, TransitionKind.FAILED)
                record.state, record.error = state, reason_json("Stop", reason)
                return record
            case _:
                raise InvalidOutcome(
                    f"{held.spec.name}.{held.step} returned {_shown(outcome)}; a step returns an outcome: "
                    "Next, Retry, Sleep, Await, Spawn, Done or Stop"
                )

    def _state(self, held: Held, subject: Any) -> msgspec.Raw | None:
        """The state that a step leaves, checked: what is committed can be loaded again (None: unchanged)."""
        if subject is None:
            return None
        raw, held.values = held.spec.codec.validated(subject.__dict__)
        if len(raw) > self._settings.max_state_bytes:
            raise InvalidState(
                f"the state of {held.spec.name} takes {len(raw)} bytes after {held.step!r}, more than "
                f"max_state_bytes={self._settings.max_state_bytes}; keep large data elsewhere and refer to it"
            )
        return None if raw == held.raw else msgspec.Raw(raw)

    def _check_step(self, held: Held, name: str) -> None:
        if name not in held.spec.steps:
            raise InvalidOutcome(
                f"{held.spec.name}.{held.step} goes to {name!r}, which is not a step of {held.spec.name}; "
                f"its steps are {', '.join(held.spec.steps)}"
            )

    async def _next(self, held: Held, subject: Any, outcome: Next, state: msgspec.Raw | None) -> Record:
        self._check_step(held, outcome.step)
        queue = held.queue.name if outcome.queue is KEEP else outcome.queue
        moved = queue != held.queue.name
        urgency = held.priority if outcome.priority is KEEP else outcome.priority
        record = self._back(held, TransitionKind.NEXT, outcome.step, outcome.delay or 0.0, 0, state)
        _progress(held, await self._limited(held, record, subject, outcome))
        if (
            not moved
            and urgency == held.priority
            and not outcome.delay
            and self._may_run_ahead(held, outcome.step)
            and _keeps_slot(held, record)
        ):
            record.op, record.delay, record.attempt, record.crashes = ON, None, None, None
            return record
        record.priority = urgency
        if moved:
            record.lane = await self._needs.lane_of(held.spec, queue)
        return record

    def _await_signal(self, held: Held, outcome: Await, state: msgspec.Raw | None) -> Record:
        self._check_step(held, outcome.then)
        record = self._back(held, TransitionKind.AWAIT, outcome.then, outcome.timeout, 0, state)
        record.op, record.awaits = WAIT, outcome.names
        if held.waits is not None:
            record.signals = [row.id for row in held.waits.awaited() if not row.status] or None
        return record

    async def _spawn(self, held: Held, outcome: Spawn, state: msgspec.Raw | None) -> Record:
        self._check_step(held, outcome.then)
        rows = await self._needs.prepare(outcome.children)
        number = ((held.waits and held.waits.spawn) or 0) + 1
        for row in rows:
            row.parent_id, row.parent_spawn = held.id, number
        held.spawning = rows or None
        record = self._back(held, TransitionKind.SPAWN, outcome.then, outcome.timeout, 0, state)
        record.op, record.children = JOIN, outcome.join
        record.spare = len(rows) - outcome.join if outcome.success else None
        record.rest = outcome.cancel_rest or None
        return _progress(held, record)

    async def _limited(self, held: Held, record: Record, subject: Any, given: Next | None = None) -> Record:
        """Says which limits the next step has; of one that has none, after one that had none, there is nothing to say.

        Raises:
            InvalidArgument: a limit is not known, or what the machine says of one is wrong.
        """
        step = held.spec.steps[record.step or held.step]
        if not (step.limited or (given is not None and given.limited) or held.own_gate or held.gate or held.rate):
            return record
        limits = held.spec.limits_of(
            step.name,
            subject if held.values is None else held.spec.load(held.values),  # as the step will get it
            held.own_gate,
            concurrency_key=KEEP if given is None else given.concurrency_key,
            rate_limit=KEEP if given is None else given.rate_limit,
            weight=KEEP if given is None else given.weight,
        )
        if limits.rate is not None:
            await self._client._check_known(limits)
        if (limits.gate, limits.rate) != (None, None) or held.gate or held.rate:
            record.limits, record.gate, record.rate, record.weight = True, limits.gate, limits.rate, limits.weight
        return record

    def _may_run_ahead(self, held: Held, step: str) -> bool:
        if self.draining or held.queue.paused or not self._settings.run_ahead or not held.spec.steps[step].run_ahead:
            return False
        waiting = bool(held.queue.buffer) or not held.queue.empty
        if not waiting:
            return True
        return held.chain_steps < CHAIN_STEPS and time.monotonic() - held.chain_since < CHAIN_SECONDS

    def follow_policy(self, held: Held, step: StepSpec, error: BaseException) -> Record:
        """The record of an error that is left to the step's retry policy."""
        delay: float | None = None
        if step.retry is not None:
            delay = step.retry.delay_after(held.attempt, error)
        if isinstance(error, RetryAfter) and (step.retry is None or held.attempt + 1 < step.retry.max_attempts):
            delay = error.delay
        if delay is None:
            return self.end(held, TransitionKind.FAILED, error)
        record = self._back(held, TransitionKind.RETRY, held.step, delay, held.attempt + 1, None)
        record.error = error_json(error)
        return record

    # Records --------------------------------------------------------------------------------------

    def _back(
        self, held: Held, kind: TransitionKind, step: str, delay: float | None, attempt: int, state: msgspec.Raw | None
    ) -> Record:
        # A worker's death counts against a step until it is done.
        crashes = held.crashes if kind is TransitionKind.RETRY else 0
        return Record(
            held.id, held.rev, BACK, step, state, delay=delay, attempt=attempt, crashes=crashes, kind=int(kind)
        )

    def end(self, held: Held, kind: TransitionKind, error: BaseException | None = None) -> Record:
        """The record of an end."""
        keep = self.keep(held.spec)
        return Record(
            held.id,
            held.rev,
            END,
            keep=None if math.isinf(keep) else keep,
            error=None if error is None else error_json(error),
            kind=int(kind),
        )

    def keep(self, spec: MachineSpec) -> float:
        """For how many seconds a machine's terminal rows stay; infinite: for ever."""
        return self._settings.retention if spec.retention is None else spec.retention

    def max_crashes(self, spec: MachineSpec) -> int:
        """How many deaths of workers in one step fail an instance."""
        return self._settings.max_crashes if spec.max_crashes is None else spec.max_crashes


def _keeps_slot(held: Held, record: Record) -> bool:
    """Whether the next step may run under what this claim holds."""
    return not record.limits or (record.rate is None and record.gate in (None, held.gate))


def _progress(held: Held, record: Record) -> Record:
    """Has an outcome consume what the step was handed; what an earlier step was, and left, is for a later await."""
    if held.waits is not None:
        record.signals = [row.id for row in held.waits.awaited()] or None
        record.afresh = [row.id for row in held.waits.left_over()] or None
    return record


def outcome_of(held: Held, step: StepSpec, returned: Any) -> Any:
    """What a step returned as an outcome: a job returns its result."""
    name = f"{held.spec.name}.{held.step}" if not step.is_function else held.spec.name
    if inspect.iscoroutine(returned):
        shown = _shown(returned)
        returned.close()
        raise InvalidOutcome(f"{name} returned {shown}, which nobody awaited; return await ... instead")
    if not step.returns_result:
        return returned
    if isinstance(returned, Outcome):
        raise InvalidOutcome(
            f"{name} returned {_shown(returned)}, but a job returns its result; to end it otherwise, "
            "raise Cancel, RetryAfter or an error, or make it a Machine"
        )
    return Done(returned)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
