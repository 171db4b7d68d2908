"""What becomes of our tables when Django's test runner makes its database, and drops it: it sends no signals then."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.connection import ConnectionDoesNotExist

from gen_durable.contrib.django import close, conf
from gen_durable.errors import ConfigurationError

__all__ = ["is_being_made", "watch"]

_making = False


def is_being_made() -> bool:
    """Whether a ``migrate`` is the one of a new test database."""
    return _making


def watch() -> None:
    """Takes part in what the runner does, by its own object for that."""
    try:
        creation = connections[conf.read().database].creation
    except (ConfigurationError, ConnectionDoesNotExist, ImproperlyConfigured):  # the checks say so
        return
    make, drop = creation.create_test_db, creation.destroy_test_db

    def making(*args: Any, **kwargs: Any) -> Any:
        global _making
        _making = True
        try:
            return make(*args, **kwargs)
        finally:
            _making = False

    def dropping(*args: Any, **kwargs: Any) -> Any:
        close()  # a database can't be dropped while somebody is connected
        return drop(*args, **kwargs)

    vars(creation).update(create_test_db=making, destroy_test_db=dropping)
