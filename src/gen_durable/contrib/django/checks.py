"""System checks: wrong settings are told by ``manage.py check``, and by every command, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core.checks import CheckMessage, Error, Warning

from gen_durable.contrib.django import conf, discovery
from gen_durable.errors import DatabaseError, DefinitionError, GenDurableError

__all__ = ["check_database", "check_settings"]


def check_settings(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """E001: a setting is wrong. W001: there is no machine. W002: a queue of a task backend is run by nobody."""
    try:
        engine = conf.build_engine(conf.read())
    except (GenDurableError, ImportError) as error:
        hint = "" if isinstance(error, DefinitionError) else f"See settings.{conf.SETTING}."
        return [Error(str(error), hint=hint or None, id="gen_durable.E001")]
    found: list[CheckMessage] = []
    if not engine.settings.machines:
        found.append(
            Warning(
                "gen_durable knows no machine and no job.",
                hint=f'Put them into a module {conf.MODULE!r} of an app, or list them in {conf.SETTING}["MACHINES"].',
                id="gen_durable.W001",
            )
        )
    for alias, queue in discovery.queues_of_tasks():
        if engine.settings.queues and queue not in engine.settings.queues:
            found.append(
                Warning(
                    f"TASKS[{alias!r}] has the queue {queue!r}, which the worker does not run.",
                    hint=f'Add it to {conf.SETTING}["QUEUES"], like {{"default": 50, {queue!r}: 10}}.',
                    id="gen_durable.W002",
                )
            )
    return found


def check_database(app_configs: Any = None, databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """W003: the tables are missing or of another version. Only where a database is to be checked, as in ``migrate``."""
    from gen_durable.contrib.django import client

    try:
        given = conf.read()
        if given.database not in (databases or ()) or given.migrate:
            return []
        client().counts()
    except DatabaseError as error:
        return [Warning(str(error), hint="Run manage.py durable migrate.", id="gen_durable.W003")]
    except GenDurableError:  # E001 tells it
        return []
    return []
