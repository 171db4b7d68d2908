"""``settings.GEN_DURABLE``, and what follows from it: the engine's settings, the machines, the database's URL."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.module_loading import autodiscover_modules, import_string
from psycopg import pq
from psycopg.conninfo import make_conninfo

from gen_durable.contrib.django import discovery
from gen_durable.engine import Engine
from gen_durable.errors import ConfigurationError

__all__ = ["Given", "build_engine", "database_url", "machines", "read"]

SETTING = "GEN_DURABLE"
MODULE = "durable"  # what is looked for in each app, as `admin` and `tasks` are elsewhere
DEFAULT_SCHEMA = "gen_durable"

# Django knows the database, so the engine is not told of another one here.
_OF_ENGINE = [name for name in inspect.signature(Engine.__init__).parameters if name not in ("self", "url", "embedded")]
_OWN = ("DATABASE", "MIGRATE")


@dataclass(frozen=True, slots=True)
class Given:
    """``settings.GEN_DURABLE``, read.

    Attributes:
        database: the alias in ``DATABASES``.
        migrate: whether Django's ``migrate`` brings gen_durable's tables too.
        schema: the Postgres schema.
        machines: dotted paths or classes; None: those in the ``durable`` modules of the apps.
        engine: the other settings, by the engine's own names.
    """

    database: str
    migrate: bool
    schema: str
    machines: tuple[Any, ...] | None
    engine: dict[str, Any]


def read() -> Given:
    """What the setting says.

    Raises:
        ConfigurationError: it is not a dict, has an unknown key, or one of its values is of a wrong kind.
    """
    given: Any = getattr(settings, SETTING, {})
    if not isinstance(given, Mapping):
        raise ConfigurationError(f'{SETTING}={given!r}: give a dict, like {{"DATABASE": "default"}}')
    known = [*_OWN, *(name.upper() for name in _OF_ENGINE)]
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key).upper(), known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise ConfigurationError(f"{SETTING} has the key {key!r}: {hint}")
    machines = given.get("MACHINES")
    if machines is not None and (isinstance(machines, str) or not isinstance(machines, Iterable)):
        raise ConfigurationError(f'{SETTING}["MACHINES"]={machines!r}: give a list of dotted paths')
    for key, kind in (("DATABASE", str), ("MIGRATE", bool), ("SCHEMA", str)):
        if key in given and not isinstance(given[key], kind):
            raise ConfigurationError(f"{SETTING}[{key!r}]={given[key]!r}: use a {kind.__name__}")
    return Given(
        database=given.get("DATABASE", "default"),
        migrate=given.get("MIGRATE", True),
        schema=given.get("SCHEMA", DEFAULT_SCHEMA),
        machines=None if machines is None else tuple(machines),
        engine={key.lower(): value for key, value in given.items() if key not in (*_OWN, "MACHINES", "SCHEMA")},
    )


def database_url(given: Given) -> str:
    """Where Django's own connections of that alias lead: under its test runner that is the test database.

    Raises:
        ConfigurationError: there is no such alias, it is no Postgres, or it names no database.
    """
    if given.database not in connections.settings:
        raise ConfigurationError(
            f'{SETTING}["DATABASE"]={given.database!r}: DATABASES has {", ".join(sorted(connections.settings))}'
        )
    connection = connections[given.database]
    if connection.vendor != "postgresql":
        raise ConfigurationError(
            f"DATABASES[{given.database!r}] is of kind {connection.vendor!r}: gen_durable needs PostgreSQL; "
            f'name another alias in {SETTING}["DATABASE"]'
        )
    try:
        parameters: dict[str, Any] = connection.get_connection_params()
    except ImproperlyConfigured as error:
        raise ConfigurationError(f"DATABASES[{given.database!r}]: {error}") from None
    of_libpq = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    kept = {name: value for name, value in parameters.items() if name in of_libpq and name != "client_encoding"}
    if role := connection.settings_dict["OPTIONS"].get("assume_role"):
        kept["options"] = f"{kept.get('options', '')} -c role={_escaped(role)}".strip()
    return make_conninfo(**kept)


def _escaped(role: str) -> str:
    return role.replace("\\", "\\\\").replace(" ", "\\ ")


def machines(given: Given) -> list[Any]:
    """The machines and jobs that the engine knows, those of the task backend among them.

    Raises:
        ConfigurationError: a dotted path leads nowhere, or to something else.
    """
    listed = _discovered() if given.machines is None else [_resolved(path) for path in given.machines]
    return [*listed, *(machine for machine in discovery.of_tasks() if machine not in listed)]


def _discovered() -> list[Any]:
    autodiscover_modules(MODULE)
    from django.apps import apps

    modules = [getattr(app.module, MODULE, None) for app in apps.get_app_configs()]
    return [
        machine for module in modules if isinstance(module, ModuleType) for machine in discovery.machines_in(module)
    ]


def _resolved(path: Any) -> Any:
    if not isinstance(path, str):
        return path
    try:
        return import_string(path)
    except ImportError as error:
        raise ConfigurationError(f'{SETTING}["MACHINES"] has {path!r}: {error}') from error


def build_engine(given: Given) -> Engine:
    """An engine of these settings, on Django's database.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    options = dict(given.engine)
    schedules = options.pop("schedules", ())
    if isinstance(schedules, Iterable) and not isinstance(schedules, str):
        options["schedules"] = [each for path in schedules for each in _several(_resolved(path))]
    else:
        options["schedules"] = schedules
    return Engine(database_url(given), embedded=False, machines=machines(given), schema=given.schema, **options)


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
