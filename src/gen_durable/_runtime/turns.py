"""The connections of transactional steps, of one kind, and whose turn it is to have one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Turn", "Turns"]


class Turn:
    """A step that wants a transaction."""

    __slots__ = ("given", "mark", "promised")

    def __init__(self, mark: int) -> None:
        self.mark = mark  # its instance's id
        self.promised = False  # a connection that is about to commit begins a transaction for it
        self.given: asyncio.Future[Any] | None = None  # None as well: it waits for nothing

    @property
    def waits(self) -> bool:
        """Whether it has neither got its turn nor given up."""
        return self.given is not None and not self.given.done()


class Turns:
    """So many connections at most; steps get them in the order in which they come.

    A transaction that is about to be committed can begin the next one in the same message, for a step that waits
    already: so what is ``now()`` for that step is no earlier than anything that it could know of. Where the step has
    given up meanwhile, the transaction is rolled back, and nobody sees it.
    """

    def __init__(
        self,
        size: int,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        undo: Callable[[Any], Coroutine[Any, Any, None]],
    ) -> None:
        self._free = size
        self._kept: list[Any] = []
        self._waiting: dict[Turn, None] = {}
        self._silent = 0  # connections that commit, and have promised nothing to anybody
        self._spawn = spawn
        self._undo = undo  # a connection's transaction; it gives that back
        self._closed = False

    async def take(self, turn: Turn) -> Any:
        """Waits for a turn; a connection, to be looked at before its use, or None: it may make one."""
        if self._free:
            self._free -= 1
            return self._kept.pop() if self._kept else None
        turn.given = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        try:
            return await turn.given
        except asyncio.CancelledError:
            if not turn.given.cancelled():  # it got its turn in the same moment
                self.give(turn.given.result())
            raise
        finally:
            self._waiting.pop(turn, None)

    def another(self) -> Any:
        """A connection that nobody has, for who has a turn and no good one."""
        return self._kept.pop() if self._kept else None

    def promise(self, connection: Any) -> int | None:
        """The mark of a step for which a connection that commits is to begin the next transaction; None: of none.

        The connections that commit already, and have promised nothing, come first, and so do the steps that they serve.
        """
        self._released(connection)
        before = self._silent
        for turn in self._waiting:
            if turn.waits and not turn.promised:
                if not before:
                    turn.promised = True
                    connection.turn = turn
                    return turn.mark
                before -= 1
        connection.silent = True
        self._silent += 1
        return None

    def give(self, connection: Any) -> None:
        """A turn is over, and so is its transaction; the connection is None where it is closed."""
        turn = None if connection is None else self._released(connection)
        if self._closed and connection is not None:
            self._spawn(close_one(connection))
            connection = None
        if (turn := self._next(turn)) is not None:
            assert turn.given is not None
            turn.given.set_result(connection)
        elif connection is not None and connection.begun:
            connection.begun = False
            self._spawn(self._undo(connection))
        else:
            self._free += 1
            if connection is not None:
                self._kept.append(connection)

    def lose(self, connection: Any) -> None:
        """A turn is over, and its connection is closed."""
        connection.begun = False
        self._released(connection)
        self.give(None)

    def _released(self, connection: Any) -> Turn | None:
        """The step for which it has begun a transaction; one that it was only promised to waits as the others do."""
        if connection.silent:
            connection.silent = False
            self._silent -= 1
        turn: Turn | None = connection.turn
        if turn is not None:
            turn.promised = False
        if not connection.begun:
            connection.turn = turn = None
        return turn

    def _next(self, turn: Turn | None) -> Turn | None:
        """The one to be served: this, if it waits; else the first of those without a promise, else the first."""
        if turn is not None and turn.waits:
            return turn
        first = None
        for other in self._waiting:
            if other.waits:
                if not other.promised:
                    return other
                first = first or other
        return first

    async def close(self) -> None:
        """Closes what is not in use; what is, is closed at its end."""
        self._closed = True
        while self._kept:
            await close_one(self._kept.pop())


async def close_one(connection: Any) -> None:
    """Closes an async connection, or a blocking one."""
    closing = connection.discard()
    if closing is not None:
        await closing
