"""Runs one step: loads its state, calls it, and turns what came of it into a record for the flusher."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor as Threads
from contextvars import copy_context
from typing import Any, Protocol

import msgspec

from gen_durable._runtime.held import Held, InboxRow
from gen_durable._runtime.isolate import isolated
from gen_durable._runtime.needs import Needs
from gen_durable._runtime.record import BACK, END, JOIN, ON, WAIT, Record, error_json, reason_json
from gen_durable._runtime.transaction import ENDED, Transaction
from gen_durable._runtime.transactions import Transactions
from gen_durable._runtime.transactor import pause_before, runs_again
from gen_durable.codec import encode_value
from gen_durable.config import Settings
from gen_durable.context import ChildResult, Context, Signal
from gen_durable.errors import InvalidOutcome, InvalidState, StateDecodeError, TransactionEnded
from gen_durable.events import Hooks, StepEvent, emit
from gen_durable.machine import MachineSpec, StepSpec
from gen_durable.outcome import KEEP, Await, Cancel, Done, Next, Outcome, Retry, RetryAfter, Sleep, Spawn, Stop
from gen_durable.status import TransitionKind

__all__ = ["Executor", "Outbox"]

log = logging.getLogger("gen_durable")

# A chain of steps of one instance gives way to others after its share.
CHAIN_STEPS = 100
CHAIN_SECONDS = 1.0

_HISTORY = {"off": 0, "steps": 1, "states": 2}


class Outbox(Protocol):
    """What the executor hands its records to."""

    def add(self, held: Held, record: Record) -> None:
        """Takes a record; the commit follows."""

    def add_within(self, held: Held, record: Record, transaction: Transaction) -> None:
        """Takes a record and the transaction in which it is to be committed."""

    def again(self, held: Held, delay: float) -> None:
        """The step is to run again, in so many seconds."""

    async def overtaken(self, held: Held) -> bool:
        """Whether an earlier run's commit, without an answer, is there after all: then this run is of no account."""
        raise NotImplementedError


class Executor:
    """Runs steps for one worker."""

    def __init__(
        self,
        settings: Settings,
        hooks: Hooks,
        outbox: Outbox,
        needs: Needs,
        worker: int,
        client: Any,
        threads: Threads,
        transactions: Transactions,
    ) -> None:
        self._settings = settings
        self._hooks = hooks
        self._outbox = outbox
        self._needs = needs
        self._worker = worker
        self._client = client
        self._threads = threads
        self._transactions = transactions
        self.draining = False

    async def run(self, held: Held) -> None:
        """Runs the step that a row stands at, and hands its outcome over. Never raises but to be cancelled."""
        spec = held.spec
        step = spec.steps.get(held.step)
        error: BaseException | None = None
        subject: Any = None
        started = time.monotonic()
        held.handled = False
        if not held.chain_steps:
            held.chain_since = started
        if held.crashes >= self.max_crashes(spec):
            record = self._end(held, TransitionKind.FAILED)
            record.error = reason_json("CrashLoop", f"its worker died {held.crashes} times in step {held.step!r}")
            self._hand_over(held, record, started, None)
            return
        try:
            if step is None:
                raise StateDecodeError(
                    f"{spec.name} version {spec.version} has no step {held.step!r} (it has {', '.join(spec.steps)}); "
                    "give a machine whose steps were renamed a new version"
                )
            values = held.values if held.values is not None else spec.codec.decode(held.raw)
            held.values = None
        except StateDecodeError as reason:
            self._hand_over(held, self._end(held, TransitionKind.FAILED, reason), started, reason)
            return
        if step.transactional:
            await self._run_in_transaction(held, step, values, started)
            return
        try:
            subject, returned = await self._call(held, step, values)
            record = await self._settle(held, subject, _outcome(held, step, returned))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as raised:  # whatever a step raises is its outcome
            if _is_ours(held, raised):
                raise
            error = raised
            record = await self._failed(held, step, raised)
        self._hand_over(held, record, started, error)

    async def _run_in_transaction(self, held: Held, step: StepSpec, values: dict[str, Any], started: float) -> None:
        """Runs a transactional step: its outcome commits with what it wrote; an error rolls that back first."""
        try:
            transaction = await self._transactions.begin(held, step)
        except Exception as error:  # noqa: BLE001  # of the user's sessionmaker
            self._hand_over(held, await self._failed(held, step, error), started, error)
            return
        started = time.monotonic()
        try:
            try:
                subject, returned = await self._call(held, step, values, transaction)
            finally:
                transaction.expire()
            await transaction.ready()
            record = await self._settle(held, subject, _outcome(held, step, returned))
        except BaseException as error:  # whatever a step raises is its outcome
            if isinstance(error, KeyboardInterrupt | GeneratorExit) or _is_ours(held, error):
                self._transactions.abandon(transaction)
                raise
            ended = transaction.ended and not isinstance(error, TransactionEnded)
            again = not ended and runs_again(held, error, transaction)
            await self._transactions.undo(transaction)
            if ended:
                error = _ended(error)
            if again:
                log.info("instance %d, step %r runs again: %s", held.id, held.step, str(error).strip())
                self._outbox.again(held, pause_before(held))
            elif not held.doubt or not await self._outbox.overtaken(held):
                self._hand_over(held, await self._failed(held, step, error), started, error)
        else:
            self._hand_over(held, record, started, None, transaction)

    async def refuse(self, held: Held, error: Exception) -> None:
        """An outcome turned out to be impossible when it was committed: that is an error of its step.

        One that the step's handler of errors gave ends the instance, as a handler that fails does: no loop.
        """
        held.spawning = None
        started = time.monotonic()
        if held.handled:
            record = self._end(held, TransitionKind.FAILED, error)
        else:
            record = await self._failed(held, held.spec.steps[held.step], error)
        self._hand_over(held, record, started, error)

    async def _call(
        self, held: Held, step: StepSpec, values: dict[str, Any], transaction: Transaction | None = None
    ) -> tuple[Any, Any]:
        subject: Any = None
        children: list[ChildResult] = []
        if held.waits is not None and held.waits.left is not None:
            children = await self._needs.children_of(held)
        call: Callable[[], Any]
        ctx: Context | None = None
        if step.is_function:
            if step.ctx_param is not None:
                values[step.ctx_param] = ctx = self._context(held, children, blocking=not step.is_async)
            call = functools.partial(step.func, **values)
        else:
            subject, ctx = held.spec.load(values), self._context(held, children, blocking=not step.is_async)
            call = functools.partial(step.func, subject, ctx)
        if transaction is not None:
            transaction.given_to(ctx)
            call = transaction.within(transaction.enclose(call), is_async=step.is_async)
        if step.timeout is None:
            return subject, await self._await(held, step.is_async, call)
        limit = asyncio.timeout(step.timeout)
        try:
            async with limit:
                returned = await self._await(held, step.is_async, call)
            if limit.expired():
                raise TimeoutError("it went on when it was cancelled")
        except TimeoutError as error:
            if limit.expired():
                raise TimeoutError(f"step {held.step!r} ran longer than its timeout of {step.timeout:g} s") from error
            raise
        return subject, returned

    async def _await(self, held: Held, is_async: bool, call: Callable[[], Any]) -> Any:
        if is_async:
            return await isolated(call(), held.queue.wake_one)
        held.queue.wake_one()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, copy_context().run, call)

    def _context(self, held: Held, children: Sequence[ChildResult] = (), *, blocking: bool = False) -> Context:
        spec = held.spec
        waits = held.waits
        return Context(
            id=held.id,
            key=held.key,
            machine=spec.name,
            version=spec.version,
            queue=held.queue.name,
            step=held.step,
            attempt=held.attempt,
            crashes=held.crashes,
            priority=held.priority,
            inserted_at=held.inserted_at,
            due_at=held.due_at,
            worker=self._worker,
            client=self._client._client_of_threads() if blocking else self._client,
            awaited=() if waits is None else _signals(waits.awaited()),
            inbox=() if waits is None else _signals(waits.signals or ()),
            timed_out=waits is not None and waits.timed_out,
            children=children,
        )

    # What came back -------------------------------------------------------------------------------

    async def _settle(self, held: Held, subject: Any, outcome: Any) -> Record:
        state = self._state(held, subject)
        match outcome:
            case Next():
                return await self._next(held, subject, outcome, state)
            case Done(result=result):
                record = self._end(held, TransitionKind.DONE)
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
                record = self._end(held, TransitionKind.FAILED)
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

    # What went wrong ------------------------------------------------------------------------------

    async def _failed(self, held: Held, step: StepSpec, error: BaseException) -> Record:
        """The outcome of a run that raised: the machine's ``on_error`` decides, else its retry policy."""
        held.values = held.spawning = None
        if isinstance(error, TransactionEnded):  # what it did may be committed: neither a retry nor a handler
            return self._end(held, TransitionKind.FAILED, error)
        if isinstance(error, Cancel):
            return self._end(held, TransitionKind.CANCELLED, error)
        if held.spec.on_error is not None and not isinstance(error, RetryAfter):
            try:
                return await self._ask_machine(held, error)
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as second:  # a handler that fails ends the instance: no loop
                if _is_ours(held, second):
                    raise
                if isinstance(second, Cancel):
                    return self._end(held, TransitionKind.CANCELLED, second)
                if second is not error:  # the same error again: the handler leaves it to the policy
                    return self._end(held, TransitionKind.FAILED, second)
        return self._follow_policy(held, step, error)

    async def _ask_machine(self, held: Held, error: BaseException) -> Record:
        spec = held.spec
        subject = spec.load(spec.codec.decode(held.raw))
        handler = spec.on_error
        assert handler is not None
        is_async = inspect.iscoroutinefunction(handler)
        ctx = self._context(held, blocking=not is_async)
        if is_async:
            returned = await isolated(handler(subject, error, ctx), held.queue.wake_one)
        else:
            returned = await self._await(held, False, functools.partial(handler, subject, error, ctx))
        record = await self._settle(held, subject, returned)
        held.handled = True
        stored = error_json(error)
        if record.error is None:
            record.error = stored
        elif "traceback" in stored:
            record.error["traceback"] = stored["traceback"]  # of what made the handler stop
        return record

    def _follow_policy(self, held: Held, step: StepSpec, error: BaseException) -> Record:
        delay: float | None = None
        if step.retry is not None:
            delay = step.retry.delay_after(held.attempt, error)
        if isinstance(error, RetryAfter) and (step.retry is None or held.attempt + 1 < step.retry.max_attempts):
            delay = error.delay
        if delay is None:
            return self._end(held, TransitionKind.FAILED, error)
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

    def _end(self, held: Held, kind: TransitionKind, error: BaseException | None = None) -> Record:
        keep = self.keep(held.spec)
        return Record(
            held.id,
            held.rev,
            END,
            keep=None if math.isinf(keep) else keep,
            error=None if error is None else error_json(error),
            kind=int(kind),
        )

    def _hand_over(
        self,
        held: Held,
        record: Record,
        started: float,
        error: BaseException | None,
        transaction: Transaction | None = None,
    ) -> None:
        record.ran = None if record.op == END else held.step
        record.tried = held.attempt
        record.took = round(time.monotonic() - started, 6)
        record.history = _HISTORY[held.spec.history or self._settings.history]
        if self._hooks.step:
            event = StepEvent(
                id=held.id,
                machine=held.spec.name,
                step=held.step,
                attempt=held.attempt,
                queue=held.queue.name,
                outcome=TransitionKind(record.kind).label,
                took=record.took,
                error=error,
            )
            emit(self._hooks.step, event)
        if error is not None and log.isEnabledFor(logging.INFO):
            log.info(
                "%s %d, step %r, attempt %d: %s: %s",
                held.spec.name, held.id, held.step, held.attempt, type(error).__name__, error,
            )  # fmt: skip
        if transaction is None:
            self._outbox.add(held, record)
        else:
            self._outbox.add_within(held, record, transaction)

    def keep(self, spec: MachineSpec) -> float:
        """For how many seconds a machine's terminal rows stay; infinite: for ever."""
        return self._settings.retention if spec.retention is None else spec.retention

    def max_crashes(self, spec: MachineSpec) -> int:
        """How many deaths of workers in one step fail an instance."""
        return self._settings.max_crashes if spec.max_crashes is None else spec.max_crashes


def _ended(error: BaseException) -> TransactionEnded:
    """The error of a step that has failed when it had ended its transaction: it must not run again."""
    ended = TransactionEnded(f"{ENDED}. It then failed: {type(error).__name__}: {error}")
    ended.__cause__ = error
    return ended


def _is_ours(held: Held, error: BaseException) -> bool:
    """Whether it is the worker that ends a run: by drain or death, or because its instance was cancelled."""
    return isinstance(error, asyncio.CancelledError) and (held.queue.cancelled or held.gone)


def _signals(rows: Iterable[InboxRow]) -> list[Signal]:
    return [Signal(row.id, row.name, row.payload, row.sent_at) for row in rows]


def _keeps_slot(held: Held, record: Record) -> bool:
    """Whether the next step may run under what this claim holds."""
    return not record.limits or (record.rate is None and record.gate in (None, held.gate))


def _progress(held: Held, record: Record) -> Record:
    """Has an outcome consume what the step was handed; what an earlier step was, and left, is for a later await."""
    if held.waits is not None:
        record.signals = [row.id for row in held.waits.awaited()] or None
        record.afresh = [row.id for row in held.waits.left_over()] or None
    return record


def _outcome(held: Held, step: StepSpec, returned: Any) -> Any:
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
