"""The app: ``INSTALLED_APPS += ["gen_durable.contrib.django"]``."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db.models.signals import post_migrate
from django.utils.connection import ConnectionDoesNotExist

from gen_durable.errors import ConfigurationError

__all__ = ["DurableConfig"]


class DurableConfig(AppConfig):
    """Registers the checks, and brings gen_durable's tables with Django's ``migrate``."""

    name = "gen_durable.contrib.django"
    label = "gen_durable"
    verbose_name = "gen_durable"

    def ready(self) -> None:
        """Once, when all apps are loaded."""
        from gen_durable.contrib.django.checks import check_database, check_settings

        checks.register(check_settings, "gen_durable")
        checks.register(check_database, checks.Tags.database)
        post_migrate.connect(_migrate, sender=self, dispatch_uid="gen_durable")
        setting_changed.connect(_forget, dispatch_uid="gen_durable")
        _close_before_the_test_database_goes()


def _migrate(*, using: str, **_: Any) -> None:
    from gen_durable.contrib.django import conf, migrate

    given = conf.read()
    if given.migrate and using == given.database:
        migrate()


def _close_before_the_test_database_goes() -> None:
    """A database can't be dropped while somebody is connected, and Django's test runner sends no signal before."""
    from django.db import connections

    from gen_durable.contrib.django import close, conf

    try:
        creation = connections[conf.read().database].creation
    except (ConfigurationError, ConnectionDoesNotExist, ImproperlyConfigured):  # the checks say so
        return
    destroy = creation.destroy_test_db

    def close_and_destroy(*args: Any, **kwargs: Any) -> None:
        close()
        destroy(*args, **kwargs)

    setattr(creation, "destroy_test_db", close_and_destroy)  # noqa: B010 - a method, to type checkers


def _forget(*, setting: str, **_: Any) -> None:
    """A test has other settings for a while."""
    from gen_durable.contrib.django import close

    if setting in ("GEN_DURABLE", "DATABASES", "TASKS", "INSTALLED_APPS"):
        close()
