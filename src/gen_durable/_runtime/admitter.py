"""Brings blocked rows forward as their limits let them: here, or for whoever claims them."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from gen_durable._runtime.births import Birth, Births
from gen_durable._runtime.link import Link
from gen_durable._runtime.service import Service
from gen_durable._store.operation import Catalog, Request, Row
from gen_durable.events import Hooks, LimitEvent, emit
from gen_durable.limits import SEPARATOR

__all__ = ["Admitter"]

MOST = 1000  # lines, and rows, of one pass


class Admitter(Service):
    """Looks at lines when somebody has knocked at them, and when a line says that it is time.

    A commit that frees something looks at those lines itself, in its own transaction: see :meth:`looking`.
    """

    name = "admitter"

    def __init__(
        self,
        link: Link,
        sql: Catalog,
        births: Births,
        hooks: Hooks,
        *,
        poll_interval: float,
        announce: Callable[[str | None], None],
        release: Callable[[list[tuple[int, int]]], Awaitable[int]],
    ) -> None:
        super().__init__()
        self._link = link
        self._sql = sql
        self._births = births
        self._hooks = hooks
        self._poll_interval = poll_interval
        self._announce = announce
        self._release = release
        self._knocked = False
        self._drawn: set[str] = set()  # lines of rates whose rows have been claimed
        self._wake_at = math.inf  # by the loop's clock

    def drawn(self, lines: set[str]) -> None:
        """Rows of these rates were claimed that had been runnable: from now on their buckets fill behind them."""
        self._drawn |= lines
        self.wake()

    def knock(self) -> None:
        """There may be something to bring forward."""
        self._knocked = True
        self.wake()

    async def once(self) -> float:
        """One pass; sleeps until a line says that it is time."""
        loop = asyncio.get_running_loop()
        if self._drawn:
            lines, self._drawn = sorted(self._drawn), set()
            await self._look(lines)
        if not self._knocked and loop.time() < self._wake_at:
            return min(self._wake_at - loop.time(), self._poll_interval)
        self._knocked, self._wake_at = False, math.inf
        await self._look(None)
        if self._knocked:
            return 0.0
        return max(min(self._wake_at - loop.time(), self._poll_interval), 0.0)

    async def _look(self, lines: list[str] | None) -> None:
        with self.looking() as look:
            look.rows = await self._link.fetch(self.request(look, lines))
        await self.let_go(look)

    def request(self, look: Look, lines: list[str] | None) -> Request:
        """A look at some lines (None: where somebody knocked)."""
        return self._sql["limiting/admit"].bind(given=lines, **look.terms)

    @contextlib.contextmanager
    def looking(self, most: int | None = None) -> Iterator[Look]:
        """A look at lines, to be sent within; then what it brings is dealt with.

        Args:
            most: how many slots the commit frees that it comes with: no more places than those are kept for it.
        """
        birth = self._births.expect_all(most)
        look = Look(
            {
                "worker": None if birth is None else birth.worker,
                "pools": None if birth is None else birth.pools(),
                "most": MOST,
                "report": bool(self._hooks.limit),
            }
        )
        with birth or contextlib.nullcontext():
            yield look
            self._deal(look.rows, birth)
        if birth is not None:
            look.late = birth.late

    def _deal(self, rows: list[Row], birth: Birth | None) -> None:
        claims = [row[6:] for row in rows if row[0] == "claim"]
        if claims:
            assert birth is not None
            birth.claimed(claims)
        for what, name, *numbers in (row for row in rows if row[0] not in ("claim", "done")):
            if what == "queue":
                self._announce(name)
            elif what == "wake":
                self.expect(numbers[3])
            elif self._hooks.limit:
                emit(self._hooks.limit, _event(name, *numbers[:4]))

    async def let_go(self, look: Look) -> None:
        """Gives back what came as a claim when the worker's life was over."""
        await self.give_back(look.late)

    async def give_back(self, claims: list[tuple[int, int]]) -> None:
        """Gives claims back, where there are any."""
        if claims:
            await self._release(claims)

    def expect(self, delay: float) -> None:
        """A line says when it is time to look at it: in so many seconds."""
        at = asyncio.get_running_loop().time() + delay
        if at < self._wake_at:
            self._wake_at = at
            self.wake()


class Look:
    """One look at lines: the terms on which it is sent, and what came of it."""

    def __init__(self, terms: dict[str, Any]) -> None:
        self.terms = terms  # the parameters that its statements share
        self.rows: list[Row] = []
        self.late: list[tuple[int, int]] = []  # claims for a life that is over


def _event(line: str, admitted: int, holding: int | None, left: float, seconds: float | None) -> LimitEvent:
    name, _, partition = line[1:].partition(SEPARATOR)
    return LimitEvent(
        kind="concurrency" if line[0] == "c" else "rate",
        name=name,
        partition=partition if SEPARATOR in line else None,
        admitted=admitted,
        holding=holding,
        left=left,
        throttled=seconds is not None,
    )
