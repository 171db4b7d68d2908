"""``MODULE:ENGINE``: loading the user's engine, changing its settings, finding a machine in it."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

import rich_click as click

if TYPE_CHECKING:
    from gen_durable import Engine
    from gen_durable.machine import MachineSpec

__all__ = ["find_machine", "load_engine", "reconfigure"]


def load_engine(target: str) -> Engine:
    """The engine that ``module:name`` names; the working directory is searched first.

    Raises:
        UsageError: there is no such module or name, it can't be imported, or it is not an engine.
    """
    from gen_durable import Engine

    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise click.UsageError(f"{target!r}: give MODULE:ENGINE, like app:engine")
    if module_name.endswith(".py") or os.sep in module_name:
        hint = module_name.removesuffix(".py").replace(os.sep, ".").lstrip(".")
        raise click.UsageError(f"{target!r}: give the module's name, not its file: {hint}:{path}")
    found: Any = _import(module_name)
    module = found
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            known = sorted(key for key, value in vars(module).items() if isinstance(value, Engine))
            hint = f"its engines are: {', '.join(known)}" if known else "there is no engine in it"
            raise click.UsageError(f"{target!r}: the module {module_name!r} has no {path!r}; {hint}") from None
    if not isinstance(found, Engine):
        raise click.UsageError(f"{target!r} is not an Engine but of type {type(found).__qualname__}")
    return found


def _import(name: str) -> Any:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise click.UsageError(f"there is no module {name!r}, neither in {here} nor installed") from None
        raise click.UsageError(_import_failed(name, error)) from error
    except Exception as error:
        raise click.UsageError(_import_failed(name, error)) from error


def _import_failed(name: str, error: Exception) -> str:
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    place = f" ({places[-1].filename}, line {places[-1].lineno})" if len(places) > 1 else ""
    return f"the module {name!r} can't be imported: {type(error).__name__}: {error}{place}"


def reconfigure(engine: Engine, **changes: Any) -> None:
    """Changes settings of an engine that is not started, in place: the user's code may hold it, with its hooks."""
    from gen_durable import Engine

    given = {field.name: getattr(engine.settings, field.name) for field in dataclasses.fields(engine.settings)}
    given |= changes
    given["machines"] = [spec.cls for spec in given["machines"]]
    url, hooks = given.pop("url"), engine._hooks
    Engine.__init__(engine, url, **given)
    engine._hooks = hooks


def find_machine(engine: Engine, name: str) -> MachineSpec:
    """The machine or job of an engine, by its stored name or its class's; of several versions the newest.

    Raises:
        UsageError: the engine has none of that name.
    """
    machines = engine.settings.machines
    fitting = [spec for spec in machines if spec.name == name] or [s for s in machines if s.cls.__name__ == name]
    if not fitting:
        known = ", ".join(sorted({spec.name for spec in machines})) or "none"
        raise click.UsageError(f"the engine has no machine or job {name!r}; it has: {known}")
    return max(fitting, key=lambda spec: spec.version)
