"""The app: ``INSTALLED_APPS += ["gen_durable.contrib.django"]``."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.core.signals import setting_changed
from django.db.models.signals import post_migrate

__all__ = ["DurableConfig"]


class DurableConfig(AppConfig):
    """Registers the checks, and brings gen_durable's tables with Django's ``migrate``."""

    name = "gen_durable.contrib.django"
    label = "gen_durable"
    verbose_name = "gen_durable"

    def ready(self) -> None:
        """Once, when all apps are loaded."""
        from gen_durable.contrib.django import runner
        from gen_durable.contrib.django.checks import check_database, check_settings

        checks.register(check_settings, "gen_durable")
        checks.register(check_database, checks.Tags.database)
        post_migrate.connect(_migrated, sender=self, dispatch_uid="gen_durable")
        setting_changed.connect(_forget, dispatch_uid="gen_durable")
        runner.watch()


def _migrated(*, using: str, **given: Any) -> None:
    """After Django's ``migrate``, and after its ``flush``, which sends the same signal without a plan."""
    from gen_durable.contrib.django import conf, migrate, runner

    settings = conf.read()
    if using != settings.database:
        return
    if "plan" not in given:
        from gen_durable.contrib.django.testing import empty_schema

        empty_schema()
    elif runner.is_being_made():
        from gen_durable.contrib.django.testing import make_schema

        make_schema()
    elif settings.migrate:
        migrate()


def _forget(*, setting: str, **_: Any) -> None:
    """A test has other settings for a while."""
    from gen_durable.contrib.django import close

    if setting in ("GEN_DURABLE", "DATABASES", "TASKS", "INSTALLED_APPS"):
        close()
