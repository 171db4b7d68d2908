"""The tasks that commit transactional steps' outcomes, when their worker's life ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from gen_durable._runtime.held import Held
from gen_durable._runtime.record import Record
from gen_durable._runtime.transactor import Transactor


class Open:
    """A transaction, seen from the one who commits it."""

    mark = 7
    discarded = False

    async def discard(self) -> None:
        self.discarded = True


class Silent:
    """A server that never answers, and nobody else to be told."""

    def wake_list(self, batch: Any) -> list[str]:
        return []

    async def send(self, *_: Any) -> Any:
        await asyncio.Event().wait()


def crashed(error: BaseException) -> None:
    raise error


async def test_a_commit_that_never_began_closes_its_connection() -> None:
    """R27: a task that is cancelled before its first step runs none of its code."""
    silent: Any = Silent()
    transactor = Transactor(silent, silent, crashed)
    transaction: Any = Open()
    held, record = SimpleNamespace(reruns=0), SimpleNamespace()
    transactor.add(cast("Held", held), cast("Record", record), transaction)
    await transactor.close()
    assert transaction.discarded
