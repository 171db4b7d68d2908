"""The engine's clock in a schema for tests: read, and moved."""

from __future__ import annotations

from datetime import datetime, timedelta

from gen_durable._checks import check_seconds
from gen_durable.engine import Engine
from gen_durable.errors import EngineStateError

__all__ = ["advance", "clock", "migrate", "move_clock"]


async def migrate(engine: Engine) -> list[str]:
    """Makes the engine's schema one for tests: with a clock that :func:`advance` moves. Else as ``engine.migrate()``.

    Every engine that opens the schema, also in other processes, keeps its clock.

    Raises:
        ConfigurationError: the schema is there already, without such a clock.
        DatabaseUnreachable: no connection.
        SchemaVersionError: the schema is newer than this package.
    """
    return await engine._migrate(test_clock=True)


async def clock(engine: Engine) -> datetime:
    """What the engine's clock says now: Postgres's, and what tests have added to it.

    Raises:
        EngineStateError: the engine is not open.
        DatabaseUnreachable: no connection.
    """
    rows = await engine._session.fetch(engine._sql["testing/clock"].bind())
    now: datetime = rows[0][0]
    return now


async def advance(engine: Engine, by: float | timedelta) -> datetime:
    """Moves the engine's clock forward, for everybody who uses the schema; answers with what it says then.

    What has become due by then is started by running workers at once, or by the next :func:`gen_durable.testing.drain`.
    Whether a worker is alive goes by the real clock.

    Args:
        by: seconds or a timedelta.

    Raises:
        InvalidArgument: it is negative, or no duration.
        EngineStateError: the engine is not open, or its schema has no clock for tests.
        DatabaseUnreachable: no connection.
    """
    return await move_clock(engine, check_seconds(by, "advance"), None)


async def move_clock(engine: Engine, seconds: float, until: datetime | None) -> datetime:
    """By so many seconds, and to ``until`` where that is later still."""
    if not engine._test_clock:
        await clock(engine)  # an engine that is not open says so
        raise EngineStateError(
            f"the schema {engine.settings.schema!r} keeps the real clock, which can't be moved: make one for tests "
            "with `await testing.migrate(engine)`, or take the engine from the fixture `durable_engine`"
        )
    rows = await engine._session.fetch(engine._sql["testing/advance"].bind(seconds=seconds, until=until))
    now: datetime = rows[0][0]
    return now
