"""Random programs of outcomes: what the engine makes of them is what a few lines of plain Python make of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine_support import Build, ended
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gen_durable import Backoff, Cancel, Context, Done, Engine, Machine, Next, Retry, RetryAfter, Sleep, Stop, step

POLICY = Backoff(max_attempts=3, initial=0, jitter=False)

# One instruction: what a run does to its state, then how it ends. "until" is the attempt from which it goes on.
Instruction = tuple[str, int, int]
KINDS = (
    "next", "moved", "urgent", "later", "retry", "sleep", "raise", "after", "nothing", "broken",
    "done", "stop", "cancel", "handled: next", "handled: done", "handled: stop", "handled: raise",
)  # fmt: skip
programs = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(-9, 9), st.integers(0, 3)), min_size=1, max_size=7)


class Interpreter(Machine, retry=POLICY, history="states"):
    program: list[tuple[str, int, int]]
    at: int = 0
    total: int = 0
    extra: Any = None

    @step
    async def even(self, ctx: Context) -> Any:
        return self.run_one(ctx)

    @step
    def odd(self, ctx: Context) -> Any:
        return self.run_one(ctx)

    def run_one(self, ctx: Context) -> Any:
        if self.at == len(self.program):
            return Done(["ran out", self.total])
        kind, value, until = self.program[self.at]
        self.total += value
        if kind in ("retry", "sleep", "raise", "after", "nothing", "broken") and ctx.attempt < until:
            match kind:
                case "retry" | "sleep":
                    return Retry()
                case "raise":
                    raise OSError(str(value))
                case "after":
                    raise RetryAfter(0)
                case "broken":
                    self.extra = float("nan")
                    return Done()
                case _:
                    return None
        self.at += 1
        match kind:
            case "done":
                return Done({"total": self.total})
            case "stop":
                return Stop(f"at {self.total}")
            case "cancel":
                raise Cancel(str(value))
            case "sleep":
                return Sleep(0.001 * until, self.then())
            case _ if kind.startswith("handled"):
                raise LookupError(kind)
        options: dict[str, Any] = {"moved": {"queue": f"q{until % 2}"}, "urgent": {"priority": value}}.get(kind, {})
        return Next(self.then(), delay=0.001 * until if kind == "later" else None, **options)

    def then(self) -> Any:
        return self.odd if self.at % 2 else self.even

    async def on_error(self, error: Any, ctx: Context) -> Any:
        if not isinstance(error, LookupError):
            raise error
        self.at += 1  # the state is the one from before
        match str(error.args[0]):
            case "handled: next":
                return Next(self.then())
            case "handled: done":
                return Done("handled")
            case "handled: stop":
                return Stop("handled")
        raise ValueError("the handler's own")


@dataclass
class Reference:
    """What should come of a program."""

    program: list[Instruction]
    at: int = 0
    total: int = 0
    status: str = ""
    result: Any = None
    error: str | None = None
    history: list[tuple[str, int, str, bool, int, int]] = field(default_factory=list)

    def run(self) -> Reference:
        name, attempt = "even", 0
        while not self.status:
            outcome, failed = self.one(attempt)
            self.history.append((name, attempt, outcome, failed, self.at, self.total))
            attempt = attempt + 1 if outcome == "retry" else 0
            name = name if outcome == "retry" else ("odd" if self.at % 2 else "even")
        return self

    def end(self, status: str, result: Any = None, error: str | None = None) -> str:
        self.status, self.result, self.error = status, result, error
        return status

    def one(self, attempt: int) -> tuple[str, bool]:
        if self.at == len(self.program):
            return self.end("done", ["ran out", self.total]), False
        kind, value, until = self.program[self.at]
        if kind in ("retry", "sleep") and attempt < until:
            self.total += value
            return "retry", False
        if kind in ("raise", "after", "nothing", "broken") and attempt < until:
            if attempt + 1 < POLICY.max_attempts:
                return "retry", True
            names = {"raise": "OSError", "after": "RetryAfter", "nothing": "InvalidOutcome", "broken": "InvalidState"}
            return self.end("failed", error=names[kind]), True
        if kind == "cancel":
            return self.end("cancelled", error="Cancel"), True
        if kind.startswith("handled"):
            if kind == "handled: raise":
                return self.end("failed", error="ValueError"), True
            self.at += 1
            if kind == "handled: stop":
                return self.end("failed", error="Stop"), True
            return ("next" if kind == "handled: next" else self.end("done", "handled")), True
        self.total += value
        self.at += 1
        if kind == "done":
            return self.end("done", {"total": self.total}), False
        if kind == "stop":
            return self.end("failed", error="Stop"), True
        return ("sleep" if kind == "sleep" else "next"), False


async def _compare(engine: Engine, all_of_them: list[list[Instruction]]) -> None:
    report = await engine.insert_many(Interpreter(program=program) for program in all_of_them)
    for item, program in zip(report, all_of_them, strict=True):
        found = await ended(item.handle)
        wanted = Reference(program).run()
        error = None if found.error is None else found.error["type"].rpartition(".")[2]
        assert (found.status, found.result, error) == (wanted.status, wanted.result, wanted.error), program
        assert (found.state["at"], found.state["total"], found.state["extra"]) == (wanted.at, wanted.total, None), (
            program
        )
        history = [
            (t.step, t.attempt, t.outcome, t.error is not None, (t.state or {})["at"], (t.state or {})["total"])
            for t in await engine.history(item.id)
        ]
        assert history == wanted.history, program


@settings(
    max_examples=12, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(st.lists(programs, min_size=15, max_size=30), st.booleans(), st.sampled_from([1, 3, 20]))
async def test_random_programs_end_as_their_reference_does(
    build: Build, all_of_them: list[list[Instruction]], run_ahead: bool, concurrency: int
) -> None:
    """R1, R3, R8, section 3: status, result, state, error and the whole history, with and without running ahead."""
    queues = {"default": concurrency, "q0": 2, "q1": 1}
    async with build(Interpreter, queues=queues, run_ahead=run_ahead) as engine:
        await _compare(engine, all_of_them)
