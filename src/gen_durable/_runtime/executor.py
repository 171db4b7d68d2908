"""Runs one step: loads its state, calls it, and hands over the record of what came of it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor as Threads
from contextvars import copy_context
from typing import Any, Protocol

from gen_durable._runtime.held import Held, InboxRow
from gen_durable._runtime.isolate import isolated
from gen_durable._runtime.needs import Needs
from gen_durable._runtime.outcomes import Outcomes, outcome_of
from gen_durable._runtime.record import END, Record, error_json, reason_json
from gen_durable._runtime.transaction import ENDED, Transaction
from gen_durable._runtime.transactions import Transactions
from gen_durable._runtime.transactor import pause_before, runs_again
from gen_durable.config import Settings
from gen_durable.context import ChildResult, Context, Signal
from gen_durable.errors import StateDecodeError, TransactionEnded
from gen_durable.events import Hooks, StepEvent, emit
from gen_durable.machine import StepSpec
from gen_durable.outcome import Cancel, RetryAfter
from gen_durable.status import TransitionKind

__all__ = ["Executor", "Outbox"]

log = logging.getLogger("gen_durable")

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
        self.outcomes = Outcomes(settings, needs, client)
        self._needs = needs
        self._worker = worker
        self._client = client
        self._threads = threads
        self._transactions = transactions

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
        if held.crashes >= self.outcomes.max_crashes(spec):
            record = self.outcomes.end(held, TransitionKind.FAILED)
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
            self._hand_over(held, self.outcomes.end(held, TransitionKind.FAILED, reason), started, reason)
            return
        if step.transactional:
            await self._run_in_transaction(held, step, values, started)
            return
        try:
            subject, returned = await self._call(held, step, values)
            record = await self.outcomes.settle(held, subject, outcome_of(held, step, returned))
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
            record = await self.outcomes.settle(held, subject, outcome_of(held, step, returned))
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
            record = self.outcomes.end(held, TransitionKind.FAILED, error)
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

    # What went wrong ------------------------------------------------------------------------------

    async def _failed(self, held: Held, step: StepSpec, error: BaseException) -> Record:
        """The outcome of a run that raised: the machine's ``on_error`` decides, else its retry policy."""
        held.values = held.spawning = None
        if isinstance(error, TransactionEnded):  # what it did may be committed: neither a retry nor a handler
            return self.outcomes.end(held, TransitionKind.FAILED, error)
        if isinstance(error, Cancel):
            return self.outcomes.end(held, TransitionKind.CANCELLED, error)
        if held.spec.on_error is not None and not isinstance(error, RetryAfter):
            try:
                return await self._ask_machine(held, error)
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as second:  # a handler that fails ends the instance: no loop
                if _is_ours(held, second):
                    raise
                if isinstance(second, Cancel):
                    return self.outcomes.end(held, TransitionKind.CANCELLED, second)
                if second is not error:  # the same error again: the handler leaves it to the policy
                    return self.outcomes.end(held, TransitionKind.FAILED, second)
        return self.outcomes.follow_policy(held, step, error)

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
        record = await self.outcomes.settle(held, subject, returned)
        held.handled = True
        stored = error_json(error)
        if record.error is None:
            record.error = stored
        elif "traceback" in stored:
            record.error["traceback"] = stored["traceback"]  # of what made the handler stop
        return record

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
