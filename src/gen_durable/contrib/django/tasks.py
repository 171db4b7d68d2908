"""The backend under the path that settings name; see :mod:`gen_durable.contrib.django.task_backend`.

Other libraries import the ``tasks`` module of every app. So this one can be imported where there are no tasks of
Django's, and says what is missing when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gen_durable.errors import ConfigurationError

if TYPE_CHECKING:
    from gen_durable.contrib.django.task_backend import AsyncTask, BlockingTask, DurableBackend

__all__ = ["AsyncTask", "BlockingTask", "DurableBackend"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        backend = importlib.import_module("gen_durable.contrib.django.task_backend")
    except ModuleNotFoundError as error:
        if not str(error.name).startswith(("django.tasks", "django_tasks")):
            raise
        raise ConfigurationError(
            f"{__name__}.{name} needs Django's tasks: install django-tasks, or use Django 6 or newer"
        ) from error
    return getattr(backend, name)
