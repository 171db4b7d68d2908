"""Which database is meant, and bringing its schema up to date."""

from __future__ import annotations

import psycopg

from gen_durable._store.connection import forbidden, open_connection, parse_url, unreachable
from gen_durable._store.migrating import migrate
from gen_durable.config import Settings, database_url_from_environment
from gen_durable.errors import ConfigurationError

__all__ = ["given_url", "migrate_at", "uses_embedded"]


def uses_embedded(settings: Settings) -> bool:
    """Whether it is the embedded server."""
    return (settings.url or database_url_from_environment()) is None or settings.embedded is True


def given_url(settings: Settings, *, development: bool = True) -> str | None:
    """The URL that is given; None: it is the embedded server's, which is to be started.

    Args:
        settings: the engine's or the client's.
        development: False for a production worker: it refuses to fall back to the embedded server.

    Raises:
        ConfigurationError: no URL, and the embedded server is not allowed.
    """
    found = settings.url or database_url_from_environment()
    if found is not None and settings.embedded is not True:
        return parse_url(found)
    if settings.embedded is False or (not development and not settings.embedded):
        raise ConfigurationError(
            "no database: pass url= or set GEN_DURABLE_DATABASE_URL or DATABASE_URL. "
            "A worker process uses the embedded development server only when asked to (embedded=True, --embedded)"
        )
    return None


async def migrate_at(url: str, settings: Settings, *, test_clock: bool = False) -> list[str]:
    """Creates or updates the schema; answers with the names of the migrations that ran.

    Raises:
        DatabaseUnreachable: no connection.
        DatabaseError: a right is missing.
        SchemaVersionError: the schema is newer than this package.
    """
    try:
        connection = await open_connection(url, f"gen_durable {settings.name} migrate")
    except (psycopg.Error, OSError) as error:
        raise unreachable(url, error) from None
    try:
        return await migrate(connection, settings.schema, test_clock=test_clock)
    except psycopg.errors.InsufficientPrivilege as error:
        raise forbidden(url, error) from error
    finally:
        await connection.close()
