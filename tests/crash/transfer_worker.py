"""The worker process of the tests of transactional steps: it moves money; started with a JSON configuration."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import sys
import time
from typing import Any

import psycopg
from chaos_worker import EVENTS, begun, note, open_journal

from gen_durable import Backoff, Context, Done, Engine, Job, Machine, Next, step

RETRY = Backoff(max_attempts=1000, initial=0.05, maximum=0.5)
MOVE = "UPDATE {schema}.accounts SET cents = cents + %s WHERE id = %s"
ENTER = "INSERT INTO {schema}.ledger (instance, step, source, target, cents) VALUES (%s, %s, %s, %s, %s)"
PAUSE = 0.01  # from its last statement to the step's end, so that many are just there when something dies

_settings: dict[str, Any] = {}


def statements(ctx: Context, source: int, target: int, cents: int) -> list[tuple[bytes, tuple[Any, ...]]]:
    """One transfer; the accounts in one order."""
    moves = sorted([(source, -cents), (target, cents)])
    texts = [(MOVE, (amount, account)) for account, amount in moves]
    texts.append((ENTER, (ctx.id, ctx.step, source, target, cents)))
    return [(text.format(schema=_settings["schema"]).encode(), values) for text, values in texts]


class Transfer(Job, name="transfer", transactional=True, retry=RETRY, max_attempts=1000):
    source: int
    target: int
    cents: int

    async def run(self, ctx: Context) -> None:
        for text, values in statements(ctx, self.source, self.target, self.cents):
            await ctx.conn.execute(text, values)
        await asyncio.sleep(PAUSE)


class ThreadTransfer(Job, name="thread_transfer", transactional=True, retry=RETRY, max_attempts=1000):
    source: int
    target: int
    cents: int

    def run(self, ctx: Context) -> None:
        for text, values in statements(ctx, self.source, self.target, self.cents):
            ctx.conn.execute(text, values)
        time.sleep(PAUSE)


class TwoTransfers(Machine, name="two_transfers", transactional=True, retry=RETRY):
    """There, and half of it back."""

    source: int
    target: int
    cents: int

    @step
    async def there(self, ctx: Context) -> Next:
        for text, values in statements(ctx, self.source, self.target, self.cents):
            await ctx.conn.execute(text, values)
        await asyncio.sleep(PAUSE)
        return Next(self.back)

    @step
    async def back(self, ctx: Context) -> Done:
        for text, values in statements(ctx, self.target, self.source, self.cents // 2):
            await ctx.conn.execute(text, values)
        return Done()


class PlainTransfer(Job, name="plain_transfer", retry=RETRY, max_attempts=1000):
    """The same on a connection of its own, committed before the outcome is."""

    source: int
    target: int
    cents: int

    async def run(self, ctx: Context) -> None:
        async with await psycopg.AsyncConnection.connect(_settings["url"], connect_timeout=2) as connection:
            for text, values in statements(ctx, self.source, self.target, self.cents):
                await connection.execute(text, values)
        await asyncio.sleep(PAUSE)


class Pausing(Machine, name="pausing", transactional=True):
    """Its first attempt moves money and then computes for long, and says nothing to the database."""

    seconds: float = 60.0

    @step
    async def only(self, ctx: Context) -> Done:
        for text, values in statements(ctx, 1, 2, 100):
            await ctx.conn.execute(text, values)
        begun(ctx)
        if ctx.attempt == 0:
            await asyncio.sleep(self.seconds)
            note(kind="woke", id=ctx.id)
        return Done(ctx.attempt)


class PausingThread(Machine, name="pausing_thread", transactional=True):
    """The same in a thread."""

    seconds: float = 60.0

    @step
    def only(self, ctx: Context) -> Done:
        for text, values in statements(ctx, 1, 2, 100):
            ctx.conn.execute(text, values)
        begun(ctx)
        if ctx.attempt == 0:
            time.sleep(self.seconds)
            note(kind="woke", id=ctx.id)
        return Done(ctx.attempt)


MACHINES = (Transfer, ThreadTransfer, TwoTransfers, PlainTransfer, Pausing, PausingThread)


def main() -> None:
    """Runs a worker until it is ended."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    open_journal(settings.pop("journal"))
    _settings.update(settings)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    engine = Engine(settings.pop("url"), machines=MACHINES, **settings)
    for event in EVENTS:
        engine.on(event, lambda happened, kind=event: note(kind=kind, **dataclasses.asdict(happened)))
    asyncio.run(engine.run())
    note(kind="returned")


if __name__ == "__main__":
    main()
