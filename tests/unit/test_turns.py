"""Whose turn it is to have a connection for a transactional step."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from gen_durable._runtime.turns import Turn, Turns


class Connection:
    def __init__(self) -> None:
        self.begun = False
        self.turn: Any = None
        self.silent = False
        self.closed = False

    def discard(self) -> None:
        self.closed = True


class Bench:
    """Turns, and what they ask for."""

    def __init__(self, size: int) -> None:
        self.undone: list[Connection] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.turns = Turns(size, self._spawn, self._undo)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    async def _undo(self, connection: Connection) -> None:
        assert not connection.begun, "it goes on as one that has nothing begun"
        self.undone.append(connection)
        self.turns.give(connection)

    async def waiting(self, mark: int) -> tuple[Turn, asyncio.Task[Any]]:
        turn = Turn(mark)
        task = asyncio.get_running_loop().create_task(self.turns.take(turn))
        await asyncio.sleep(0)
        assert not task.done()
        return turn, task

    def commit(self, connection: Connection, *, works: bool = True) -> int | None:
        """What a transaction does at its end."""
        mark = self.turns.promise(connection)
        connection.begun = works and mark is not None
        return mark


@pytest.fixture
async def bench() -> Bench:
    made = Bench(1)
    assert await made.turns.take(Turn(1)) is None, "the first makes its own"
    return made


async def of_two(bench: Bench) -> tuple[Turns, Connection, Connection]:
    """Turns for two, both taken."""
    turns = bench.turns = Turns(2, bench._spawn, bench._undo)
    assert await turns.take(Turn(8)) is await turns.take(Turn(9)) is None
    return turns, Connection(), Connection()


async def test_turns_are_given_in_order_and_never_more_than_there_are(bench: Bench) -> None:
    """A connection goes from hand to hand."""
    one = Connection()
    waiting = [(await bench.waiting(mark))[1] for mark in (2, 3, 4)]
    for task in waiting:
        bench.turns.give(one)
        assert await task is one
        assert sum(other.done() for other in waiting) == waiting.index(task) + 1
    bench.turns.give(one)
    assert await bench.turns.take(Turn(5)) is one, "kept for whoever comes"


async def test_a_transaction_is_begun_for_who_waits_and_for_nobody_else(bench: Bench) -> None:
    """R6: what is now() in it is no earlier than anything its step could know of: it waited already."""
    one = Connection()
    assert bench.turns.promise(one) is None, "nobody waits"
    turn, task = await bench.waiting(2)
    assert bench.commit(one) == 2
    assert bench.turns.promise(Connection()) is None, "one is enough for it"
    bench.turns.give(one)
    assert await task is one
    assert (one.begun, one.turn) == (True, turn)


async def test_it_goes_to_the_one_it_was_begun_for_though_another_came_first(bench: Bench) -> None:
    """A connection without a promise serves the first without one."""
    turns, one, two = await of_two(bench)
    _, first = await bench.waiting(2)
    assert bench.commit(one) == 2
    _, second = await bench.waiting(3)
    turns.give(two)
    turns.give(one)
    assert await second is two
    assert await first is one
    assert one.begun


async def test_who_is_served_sooner_by_others_is_promised_nothing(bench: Bench) -> None:
    """What was begun for it would have to be undone: so only those are served that are more than commit already."""
    turns = Turns(3, bench._spawn, bench._undo)
    bench.turns = turns
    one, two, three = Connection(), Connection(), Connection()
    assert [await turns.take(Turn(mark)) for mark in (7, 8, 9)] == [None] * 3
    assert bench.commit(one) is None
    _, first = await bench.waiting(2)
    assert bench.commit(two) is None, "the first is served by what commits already"
    _, second = await bench.waiting(3)
    _, third = await bench.waiting(4)
    assert bench.commit(three) == 4
    for connection, task in ((one, first), (two, second), (three, third)):
        turns.give(connection)
        assert await task is connection
    assert bench.undone == []
    assert bench.commit(one) is None
    assert bench.commit(one) is None, "asked again it is counted once"
    turns.lose(one)
    assert await turns.take(Turn(5)) is None, "the turn of the lost one"
    _, task = await bench.waiting(6)
    assert bench.commit(two) == 6, "which is counted no more"
    task.cancel()


async def test_who_has_a_promise_does_not_wait_for_it_alone(bench: Bench) -> None:
    """Another connection that is free serves it, if nobody else waits; what was begun for it is then undone."""
    turns, one, two = await of_two(bench)
    _, first = await bench.waiting(2)
    assert bench.commit(one) == 2
    turns.give(two)
    assert await first is two
    turns.give(one)
    await asyncio.gather(*bench.tasks)
    assert bench.undone == [one]


async def test_a_promise_that_is_not_kept_does_not_hold_its_step_up(bench: Bench) -> None:
    """The commit failed, or the connection broke: the step is the first of those that wait, as before."""
    for lost in (False, True):
        one = Connection()
        _, first = await bench.waiting(2)
        assert bench.commit(one, works=False) == 2
        _, second = await bench.waiting(3)
        if lost:
            bench.turns.lose(one)
        else:
            bench.turns.give(one)
        assert await first is (None if lost else one)
        assert not second.done()
        bench.turns.give(one)
        assert await second is one


async def test_what_was_begun_for_one_that_gave_up_is_undone_before_it_is_kept(bench: Bench) -> None:
    """No connection rests inside a transaction."""
    one = Connection()
    _, task = await bench.waiting(2)
    assert bench.commit(one) == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    bench.turns.give(one)
    await asyncio.gather(*bench.tasks)
    assert bench.undone == [one]
    assert await bench.turns.take(Turn(3)) is one


async def test_what_was_begun_for_one_that_gave_up_is_no_other_s(bench: Bench) -> None:
    """R6: the next step gets the connection, and knows that the transaction is not its own."""
    one = Connection()
    _, gone = await bench.waiting(2)
    assert bench.commit(one) == 2
    turn, task = await bench.waiting(3)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    bench.turns.give(one)
    assert await task is one
    assert one.begun
    assert one.turn is not turn


@pytest.mark.parametrize("begun", [False, True])
async def test_a_turn_that_comes_as_its_step_gives_up_is_the_next_one_s(bench: Bench, begun: bool) -> None:
    """Nothing is lost between the two."""
    one = Connection()
    _, gone = await bench.waiting(2)
    if begun:
        bench.commit(one)
    bench.turns.give(one)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await asyncio.gather(*bench.tasks)
    assert bench.undone == ([one] if begun else [])
    assert await bench.turns.take(Turn(3)) is one
    assert not one.begun


async def test_behind_the_end_connections_are_closed(bench: Bench) -> None:
    """Those at rest at once, the others when they come back; who waits makes its own."""
    one, two = Connection(), Connection()
    bench.turns.give(one)
    assert await bench.turns.take(Turn(2)) is one
    await bench.turns.close()
    _, task = await bench.waiting(3)
    bench.turns.give(two)
    assert await task is None
    await asyncio.gather(*bench.tasks)
    assert two.closed
