"""Runs everything that is due in the task of a test, through the worker's own parts."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from gen_durable._checks import check_name
from gen_durable._runtime.held import Held, LocalQueue
from gen_durable.engine import Engine
from gen_durable.errors import EngineStateError, InvalidArgument, TooManySteps
from gen_durable.testing._clock import clock, move_clock
from gen_durable.testing._stepper import Stepper
from gen_durable.testing._tally import Tally

__all__ = ["drain"]

VAIN = 100


async def drain(
    engine: Engine, *, max_steps: int = 1000, collapse: bool = True, queues: Iterable[str] | None = None
) -> Tally:
    """Runs everything that can run, here and now, until nothing can; answers with what came of it.

    A worker of its own is registered for the time being. It claims one row at a time in the order of its queue
    (priority, due time, id), runs its step in this task and commits, with the statements and the code of any worker;
    a chain of steps runs to its end, then the next queue has its turn. What the engine does not know, and paused
    queues, stay as they are.

    Args:
        engine: open as a client: ``async with engine.client():``.
        max_steps: after so many runs it gives up.
        collapse: when only delayed, sleeping and backed-off work is left, bring the clock forward to the next of it. A
            parked instance's timeout and a schedule's next occurrence do not move the clock; they come when other work
            moves it that far.
        queues: only these; None: all, also those that the engine itself does not run.

    Raises:
        TooManySteps: ``max_steps`` runs, and still something to do; it names the instance and the step.
        EngineStateError: the engine is not open, or runs a worker, or ``collapse`` is wanted and the schema has no
            clock for tests.
        InvalidArgument: an argument is wrong, or there is no such queue.
        DatabaseUnreachable: the connection broke.
    """
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise InvalidArgument(f"max_steps={max_steps!r}: use a whole number of 1 or more")
    await clock(engine)  # first: an engine that is not open says so
    if engine._worker is not None:
        raise EngineStateError(
            f"the engine {engine.settings.name!r} runs a worker, which would race with the drain: "
            "open it with `async with engine.client():`"
        )
    if collapse:
        await move_clock(engine, 0.0, None)  # a schema whose clock can't be moved says so
    stepper = Stepper(engine, await _queues(engine, queues))
    try:
        await stepper.open()
        return await _Drain(engine, stepper, max_steps, collapse).run()
    finally:
        await stepper.close()


async def _queues(engine: Engine, given: Iterable[str] | None) -> list[str]:
    if given is None:
        own = [*engine.settings.queues, *(spec.queue for spec in engine.settings.machines)]
        return list(dict.fromkeys([*own, *(queue.name for queue in await engine.queues())]))
    if isinstance(given, str):
        raise InvalidArgument(f"queues={given!r}: give a list of names")
    names = list(dict.fromkeys(check_name(name, "queues: a name") for name in given))
    if not names:
        raise InvalidArgument("queues=[]: name at least one queue, or leave it out for all")
    await engine._check_queues(set(names))
    return names


class _Drain:
    def __init__(self, engine: Engine, stepper: Stepper, max_steps: int, collapse: bool) -> None:
        self._engine = engine
        self._stepper = stepper
        self._max_steps = max_steps
        self._collapse = collapse
        self._turns: deque[LocalQueue] = deque(stepper.queues.values())
        self._runs: Counter[tuple[int, str]] = Counter()
        self._tally = Tally()
        self._vain = 0  # moves of the clock that brought nothing to run

    async def run(self) -> Tally:
        """Until nothing can run."""
        await self._stepper.promote()
        while True:
            held = await self._next()
            if held is not None:
                await self._run_chain(held)
            elif not (await self._stepper.learn() or await self._stepper.promote() or await self._bring_forward()):
                return self._tally

    async def _next(self) -> Held | None:
        """The next row of the queue whose turn it is, or of the first after it that has one."""
        for _ in range(len(self._turns)):
            queue = self._turns[0]
            self._turns.rotate(-1)
            held = await self._stepper.take(queue)
            if held is not None:
                return held
        return None

    async def _run_chain(self, held: Held) -> None:
        goes_on = True
        while goes_on:
            if self._tally.runs == self._max_steps:
                raise self._too_many(held)
            step = held.step
            self._runs[held.id, step] += 1
            self._vain = 0
            outcome, goes_on = await self._stepper.step(held)
            self._tally.add(held.spec.name, step, outcome)

    async def _bring_forward(self) -> bool:
        """Moves the clock to where the next scheduled row is due, or a rate has tokens again; answers whether there is
        one. Tokens that never come, because rows of other queues take them, are not waited for without end."""
        if not self._collapse or self._vain == VAIN:
            return False
        self._vain += 1
        rows = await self._engine._session.fetch(self._engine._sql["testing/due"].bind(lanes=self._stepper.lanes))
        if rows[0][0] is None:
            return False
        before = await clock(self._engine)
        after = await move_clock(self._engine, 0.0, rows[0][0])
        self._tally.advanced += (after - before).total_seconds()
        await self._stepper.promote()
        return True

    def _too_many(self, held: Held) -> TooManySteps:
        return TooManySteps(
            self._max_steps, held.id, held.key, held.spec.name, held.step, self._runs[held.id, held.step]
        )
