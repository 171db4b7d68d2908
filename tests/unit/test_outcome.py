"""Outcomes are values that are checked where they are built."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, get_args

import pytest

from gen_durable import Context, Machine, job, step
from gen_durable._checks import MAX_SECONDS, check_name
from gen_durable.errors import InvalidArgument
from gen_durable.outcome import KEEP, Await, Cancel, Done, Next, Outcome, Retry, RetryAfter, Sleep, Spawn, Stop, child


class Shop:
    async def ship(self, ctx: object) -> None: ...

    def __call__(self) -> None: ...


@pytest.mark.parametrize("step", [Shop().ship, Shop.ship, "ship"])
def test_a_step_is_a_method_or_a_name(step: Any) -> None:
    """R8: step references are methods; a plain string is accepted too."""
    assert Next(step).step == "ship"
    assert Sleep(1, step).then == "ship"
    assert Sleep(seconds=1, then=step).then == "ship"


@pytest.mark.parametrize("step", [None, 3, Shop, Shop(), lambda: None, partial(Shop.ship), b"ship", ""])
def test_anything_else_is_not_a_step(step: Any) -> None:
    """R8: the message says what came."""
    with pytest.raises(InvalidArgument, match=r"^Next"):
        Next(step)
    with pytest.raises(InvalidArgument, match=r"^Sleep: then"):
        Sleep(1, step)


def test_the_message_for_a_non_step_shows_it_and_the_mend() -> None:
    with pytest.raises(InvalidArgument, match=r"^Next got 3 \(int\), which is not a step; give a step of the machine"):
        Next(3)  # type: ignore[arg-type]


def test_a_called_step_is_named_and_closed() -> None:
    """The coroutine of ``Next(self.ship(ctx))`` is closed, so nothing warns that it was never awaited."""
    with pytest.raises(InvalidArgument, match=r"give the method itself, self\.ship, without calling it"):
        Next(Shop().ship(None))  # type: ignore[arg-type]


def test_what_is_not_given_is_kept() -> None:
    outcome = Next("ship")
    assert (outcome.queue, outcome.priority, outcome.delay) == (KEEP, KEEP, None)
    assert repr(outcome) == "Next('ship')"


def test_options_of_next() -> None:
    outcome = Next("ship", queue="fast", priority=-5, delay=timedelta(minutes=1))
    assert (outcome.queue, outcome.priority, outcome.delay) == ("fast", -5, 60.0)
    assert repr(outcome) == "Next('ship', queue='fast', priority=-5, delay=60.0)"
    assert repr(Next("a", priority=0, delay=0)) == "Next('a', priority=0, delay=0.0)"


DELAYS: list[tuple[str, Any]] = [
    ("Next: delay", lambda delay: Next("ship", delay=delay).delay),
    ("Retry: delay", lambda delay: Retry(delay).delay),
    ("Sleep: seconds", lambda delay: Sleep(delay, "ship").seconds),
    ("RetryAfter: delay", lambda delay: RetryAfter(delay).delay),
    ("Await: timeout", lambda delay: Await("a", "ship", timeout=delay).timeout),
    ("Spawn: timeout", lambda delay: Spawn([], "ship", timeout=delay).timeout),
]


@pytest.mark.parametrize(("what", "build"), DELAYS, ids=[what for what, _ in DELAYS])
class TestDelays:
    @pytest.mark.parametrize("delay", [0, 1.5, timedelta(milliseconds=1), MAX_SECONDS])
    def test_seconds_and_timedeltas_become_float_seconds(self, what: str, build: Any, delay: Any) -> None:
        seconds = build(delay)
        assert type(seconds) is float
        assert seconds == (delay.total_seconds() if isinstance(delay, timedelta) else delay)

    @pytest.mark.parametrize(
        ("delay", "says"),
        [
            (-1, r"must be 0 or more seconds, not -1 \(int\)"),
            (timedelta(seconds=-1), "must be 0 or more seconds"),
            (-(10**400), "must be 0 or more seconds"),
            (math.nan, "must be 0 or more seconds, not nan"),
            (math.inf, "must be at most 100 years"),
            (10**5000, r"must be at most 100 years .*, not a value \(int\)"),
            (MAX_SECONDS * 1.01, "must be at most 100 years"),
            (timedelta.max, "must be at most 100 years"),
            ("5", r"must be seconds \(a number\) or a timedelta, not '5' \(str\)"),
            (True, "must be seconds"),
            (b"1", "must be seconds"),
        ],
        ids=range(11),
    )
    def test_bad_delays(self, what: str, build: Any, delay: Any, says: str) -> None:
        with pytest.raises(InvalidArgument, match=f"^{what} {says}"):
            build(delay)


def test_none_is_a_delay_of_next_only() -> None:
    assert Next("ship", delay=None).delay is None
    assert Retry().delay == 0.0
    with pytest.raises(InvalidArgument, match=r"Retry: delay must be seconds .*, not None$"):
        Retry(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("priority", [-32768, 0, 32767])
def test_priorities(priority: int) -> None:
    assert Next("ship", priority=priority).priority == priority


@pytest.mark.parametrize("priority", [-32769, 32768, 1.0, True, "1", None])
def test_bad_priorities(priority: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"Next: priority must be .*-32768 to 32767"):
        Next("ship", priority=priority)


BAD_NAMES: list[tuple[Any, str]] = [
    ("", "must not be empty"),
    ("é" * 257, "must be at most 512 bytes of UTF-8; .* has 514"),
    ("a\0", "has a NUL character"),
    ("\ud800", "has a lone surrogate"),
    (3, r"must be a string, not 3 \(int\)"),
    (None, "must be a string, not None"),
]


@pytest.mark.parametrize(("name", "says"), BAD_NAMES, ids=range(len(BAD_NAMES)))
def test_bad_names(name: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=f"Next: queue .*{says}"):
        Next("ship", queue=name)
    with pytest.raises(KeyError):  # another class of error, for other callers
        check_name(name, "it", error=KeyError)  # type: ignore[arg-type]


def test_the_longest_name() -> None:
    assert Next("ship", queue="é" * 256).queue == "é" * 256


def test_done_takes_any_result() -> None:
    assert Done().result is None
    assert Done({"a": 1}).result == {"a": 1}
    assert repr(Done(3)) == "Done(result=3)"


def test_a_reason_is_text() -> None:
    assert Stop("why").reason == "why"
    assert Cancel("why").reason == str(Cancel("why")) == "why"
    assert Cancel().reason
    for build in (Stop, Cancel):
        with pytest.raises(InvalidArgument, match=rf"{build.__name__}: reason must be a string.*ValueError.*use str"):
            build(ValueError("x"))  # type: ignore[arg-type]


def test_retry_after_says_its_delay() -> None:
    assert str(RetryAfter(timedelta(seconds=90))) == "retry after 90 s"
    assert issubclass(RetryAfter, Exception)
    assert issubclass(Cancel, Exception)


@pytest.mark.parametrize(
    "outcome",
    [Next("a", queue="q"), Retry(1), Sleep(1, "a"), Await(["x", "y"], "a", timeout=1), Done(1), Stop("x")],
    ids=repr,
)
def test_outcomes_are_frozen_values(outcome: Any) -> None:
    assert isinstance(outcome, get_args(Outcome))
    assert outcome == copy.deepcopy(outcome) == pickle.loads(pickle.dumps(outcome))
    assert hash(outcome) == hash(copy.copy(outcome))
    assert not hasattr(outcome, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(outcome, dataclasses.fields(outcome)[0].name, "other")


def test_keep_stays_itself() -> None:
    assert pickle.loads(pickle.dumps(KEEP)) is KEEP
    assert repr(KEEP) == "KEEP"


# Await, Spawn, child ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        ("paid", ("paid",)),
        (["b", "a", "b"], ("a", "b")),
        (("a",), ("a",)),
        ({"b", "a"}, ("a", "b")),
        (frozenset({"é" * 256}), ("é" * 256,)),
    ],
)
def test_names_of_an_await(names: Any, kept: tuple[str, ...]) -> None:
    """Section 5: one name or several, each once."""
    outcome = Await(names, then=Shop().ship, timeout=timedelta(hours=1))
    assert (outcome.names, outcome.then, outcome.timeout) == (kept, "ship", 3600.0)
    assert Await(names, "ship").timeout is None


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "names is empty; name at least one signal"),
        (3, r"names must be a string or several, not 3 \(int\)"),
        (None, "names must be a string or several, not None"),
        (b"paid", "names must be a string or several"),
        ({"paid": 1}, "names must be a string or several"),
        ("", "the name of a signal must not be empty"),
        (["a", 3], r"the name of a signal must be a string, not 3 \(int\)"),
        (["a\0"], "has a NUL character"),
    ],
    ids=range(8),
)
def test_bad_names_of_an_await(names: Any, says: str) -> None:
    """Section 14: where it is built, with the value and the mend."""
    with pytest.raises(InvalidArgument, match=f"^Await: .*{says}"):
        Await(names, then="ship")


def test_an_await_needs_a_step_and_a_timeout_that_is_one() -> None:
    with pytest.raises(TypeError):
        Await("paid")  # type: ignore[call-arg]
    with pytest.raises(InvalidArgument, match=r"^Await: then got 3"):
        Await("paid", then=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"^Await: timeout must be 0 or more seconds, not -1"):
        Await("paid", then="ship", timeout=-1)


@job
async def task(n: int = 0) -> int:
    return n


class Parcel(Machine):
    number: int = 0

    @step
    async def start(self, ctx: Context) -> Done:
        return Done()


def test_children_are_machines_and_jobs_with_options_or_without() -> None:
    """Section 6."""
    at = datetime(2030, 1, 1, tzinfo=UTC)
    given = [task.bind(1), Parcel(number=2), child(task.bind(3), key="k", queue="q", priority=-1, at=at)]
    outcome = Spawn(given, then=Shop().ship)
    assert [(one.key, one.queue, one.priority, one.at) for one in outcome.children] == [
        (None, None, None, None),
        (None, None, None, None),
        ("k", "q", -1, at),
    ]
    assert (outcome.then, outcome.join, outcome.success, outcome.timeout, outcome.cancel_rest) == (
        *("ship", 3, False, None, False),
    )
    assert Spawn((task.bind(n) for n in range(4)), then="ship").join == 4  # any iterable
    assert Spawn([], then="ship").join == 0


@pytest.mark.parametrize(
    ("join", "children", "count"),
    [("all", 3, 3), ("any", 3, 1), (2, 3, 2), (3, 3, 3), ("any", 0, 0), (1, 0, 0), ("all", 0, 0)],
)
def test_join_rules(join: Any, children: int, count: int) -> None:
    """Section 6: all, any, or a number; nothing to wait for without children."""
    assert Spawn([task.bind(n) for n in range(children)], then="ship", join=join).join == count


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"join": "most"}, r"""Spawn: join must be "all", "any" or a number, not 'most' \(str\)"""),
        ({"join": None}, "Spawn: join must be"),
        ({"join": True}, "Spawn: join must be"),
        ({"join": 1.0}, "Spawn: join must be"),
        ({"join": 0}, "Spawn: join=0 of 2 children; use a number from 1 to 2"),
        ({"join": 3}, "Spawn: join=3 of 2 children; use a number from 1 to 2"),
        ({"success": 1}, r"Spawn: success must be True or False, not 1 \(int\)"),
        ({"cancel_rest": "yes"}, "Spawn: cancel_rest must be True or False"),
        ({"timeout": -1}, "Spawn: timeout must be 0 or more seconds"),
        ({"then": None}, "Spawn: then got None"),
        ({"children": 3}, r"Spawn: children must be a list of machines and jobs, not 3 \(int\)"),
        ({"children": "task"}, "Spawn: children must be a list"),
        ({"children": [task]}, r"neither a machine nor a bound job; give Resize\(\.\.\.\) or resize\.bind"),
        ({"children": [Parcel]}, "neither a machine nor a bound job"),
        ({"children": [task.bind(), 3]}, r"Spawn got 3 \(int\), which is neither"),
        ({"children": [child(Parcel)]}, "neither a machine nor a bound job"),
        ({"children": [{"n": 1}]}, "neither a machine nor a bound job"),
    ],
    ids=range(17),
)
def test_bad_spawns(arguments: dict[str, Any], says: str) -> None:
    """Section 14: where it is built, with the value and the mend."""
    with pytest.raises(InvalidArgument, match=says):
        Spawn(**{"children": [task.bind(), task.bind()], "then": "ship"} | arguments)


def test_a_spawn_keeps_the_list_that_it_was_given() -> None:
    given = [task.bind(1)]
    outcome = Spawn(given, then="ship")
    given.append(task.bind(2))
    assert len(outcome.children) == 1
    assert isinstance(outcome, get_args(Outcome))
    with pytest.raises(dataclasses.FrozenInstanceError):
        outcome.then = "other"  # type: ignore[misc]
