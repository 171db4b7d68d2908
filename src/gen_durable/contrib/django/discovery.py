"""Which machines a module has, and which the task backend needs."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

from gen_durable.job import JobFunction
from gen_durable.machine import Machine

__all__ = ["machines_in", "of_tasks", "queues_of_tasks"]


def machines_in(module: ModuleType) -> list[Any]:
    """The machines and jobs that a module, or its submodules, define; what it imports from elsewhere is another's."""
    own = module.__name__
    return [
        value
        for value in vars(module).values()
        if f"{getattr(value, '__module__', '')}.".startswith(f"{own}.") and _runs(value)
    ]


def _runs(value: Any) -> bool:
    if isinstance(value, type):
        return issubclass(value, Machine) and getattr(value, "__durable__", None) is not None
    return isinstance(value, JobFunction)


def of_tasks() -> list[Any]:
    """The jobs in which tasks run, where ``settings.TASKS`` has a backend of ours.

    Raises:
        ConfigurationError: it has, and there are no tasks of Django's.
    """
    if not _our_backends():
        return []
    from gen_durable.contrib.django.task_backend import AsyncTask, BlockingTask

    return [BlockingTask, AsyncTask]


def queues_of_tasks() -> list[tuple[str, str]]:
    """The queues of our task backends: each backend's alias with a queue's name."""
    return [
        (alias, queue) for alias, backend in _our_backends().items() for queue in backend.get("QUEUES") or ["default"]
    ]


def _our_backends() -> dict[str, dict[str, Any]]:
    tasks: Any = getattr(settings, "TASKS", None)
    return {alias: given for alias, given in tasks.items() if _is_ours(given)} if isinstance(tasks, dict) else {}


def _is_ours(given: Any) -> bool:
    path = given.get("BACKEND") if isinstance(given, dict) else None
    try:
        backend = import_string(path) if isinstance(path, str) else None
        from gen_durable.contrib.django.task_backend import DurableBackend
    except ImportError:
        return False  # Django says so itself
    return isinstance(backend, type) and issubclass(backend, DurableBackend)
