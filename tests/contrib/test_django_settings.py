"""``settings.GEN_DURABLE``: what is taken, what the checks say, and where the database's URL comes from."""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections
from django.test import override_settings
from psycopg.conninfo import conninfo_to_dict

from gen_durable import Schedule, job
from gen_durable.contrib.django import checks, conf, engine, models
from gen_durable.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("project")


@job
async def nightly() -> None: ...


NIGHTLY = Schedule("nightly", "0 3 * * *", nightly.bind())
PATH = "test_django_settings.nightly"


def given(**keys: Any) -> Any:
    return override_settings(GEN_DURABLE={**settings.GEN_DURABLE, **keys})


def test_the_project_passes_its_checks() -> None:
    """Nothing is wrong with the shop's settings."""
    call_command("check")
    assert checks.check_settings() == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("on", "GEN_DURABLE='on': give a dict"),
        ({"QEUES": {}}, "the key 'QEUES': did you mean 'QUEUES'?"),
        ({"queues": {}}, "the key 'queues': did you mean 'QUEUES'?"),
        ({"URL": "postgresql://h/d"}, "the key 'URL': known are DATABASE, MIGRATE"),
        ({"DATABASE": "other"}, "GEN_DURABLE[\"DATABASE\"]='other': DATABASES has default"),
        ({"DATABASE": 1}, "GEN_DURABLE['DATABASE']=1: use a str"),
        ({"MIGRATE": "yes"}, "GEN_DURABLE['MIGRATE']='yes': use a bool"),
        ({"MACHINES": "a.b"}, "GEN_DURABLE[\"MACHINES\"]='a.b': give a list of dotted paths"),
        ({"MACHINES": ["examples.nowhere.Checkout"]}, "No module named 'examples.nowhere'"),
        ({"MACHINES": ["examples.django_shop.shop.durable.Nothing"]}, "Nothing"),
        ({"MACHINES": ["examples.django_shop.shop.durable.DAY"]}, "86400.0"),
        ({"QUEUES": {"default": 0}}, "queues['default']=0: use a whole number"),
        ({"SCHEMA": "no-schema"}, "no-schema"),
        ({"LEASE": 1}, "heartbeat=5 s is too slow for lease=1 s"),
        ({"SCHEDULES": [1]}, "schedules has 1"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_told_by_the_checks(setting: Any, said: str) -> None:
    """Section 14: what is wrong is named by ``manage.py check``, before anything runs."""
    with override_settings(GEN_DURABLE=setting):
        (found,) = checks.check_settings()
        assert found.id == "gen_durable.E001"
        assert said in found.msg
        with pytest.raises(SystemCheckError, match=r"gen_durable\.E001"):
            call_command("check")


def test_a_project_without_machines_is_warned() -> None:
    """A worker that knows nothing would run nothing."""
    with override_settings(TASKS={}), given(MACHINES=[]):
        (found,) = checks.check_settings()
        assert found.id == "gen_durable.W001"


def test_a_queue_of_tasks_that_nobody_runs_is_warned_of() -> None:
    """A task there would wait for ever."""
    backend = {"BACKEND": "gen_durable.contrib.django.tasks.DurableBackend", "QUEUES": ["default", "mail"]}
    with override_settings(TASKS={"default": backend}):
        (found,) = checks.check_settings()
        assert found.id == "gen_durable.W002"
        assert "'mail'" in found.msg
        with given(QUEUES={"default": 1, "mail": 1, "shop": 1}):
            assert checks.check_settings() == []


WITHOUT_TASKS = """
import sys

class Hidden:
    def find_spec(self, name, *_):
        if name.startswith(("django.tasks", "django_tasks")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
import django
from django.conf import settings

database = {"ENGINE": "django.db.backends.postgresql", "NAME": "shop"}
backend = {"BACKEND": "gen_durable.contrib.django.tasks.DurableBackend"}
apps = ["django.contrib.contenttypes", "gen_durable.contrib.django"]
settings.configure(DATABASES={"default": database}, TASKS={"default": backend}, INSTALLED_APPS=apps)
django.setup()
import gen_durable.contrib.django.tasks
from gen_durable.contrib.django.checks import check_settings

print([found.msg for found in check_settings()])
settings.TASKS = {}
print([found.id for found in check_settings()])
"""


def test_the_tasks_module_can_be_imported_where_there_are_no_tasks() -> None:
    """Celery and others import the ``tasks`` of every app; what is missing is said when the backend is used."""
    ran = subprocess.run([sys.executable, "-c", WITHOUT_TASKS], capture_output=True, text=True, check=True)
    first, second = ran.stdout.splitlines()
    assert "install django-tasks, or use Django 6" in first
    assert second == "['gen_durable.W001']"


def test_every_setting_of_an_engine_is_a_key() -> None:
    """Section 2: the engine's settings, in capitals."""
    with given(DRAIN_TIMEOUT=7, LEASE=20, HISTORY="states", QUEUE_LIMITS={"shop": 3}):
        found = conf.build_engine(conf.read()).settings
        assert (found.drain_timeout, found.lease, found.history) == (7.0, 20.0, "states")
        assert found.queue_limits == {"shop": 3}


def test_machines_come_from_the_durable_modules_of_the_apps() -> None:
    """And the task backend's; not what such a module imports."""
    names = {spec.name for spec in engine().settings.machines}
    assert names == {"DjangoCheckout", "django.task", "django.task.async"}


def test_machines_and_schedules_may_be_listed_by_path() -> None:
    """Then nothing is looked for."""
    with override_settings(TASKS={}), given(MACHINES=[PATH], SCHEDULES=["test_django_settings.NIGHTLY"]):
        found = conf.build_engine(conf.read()).settings
        assert [spec.name for spec in found.machines] == ["nightly"]
        assert found.schedules == (NIGHTLY,)


# The database -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def changed(**changes: Any) -> Iterator[dict[str, Any]]:
    """The database's settings with some others; gives what the URL then holds."""
    connection = connections["default"]
    before = connection.settings_dict
    connection.settings_dict = {**copy.deepcopy(before), **changes}
    try:
        yield dict(conninfo_to_dict(conf.database_url(conf.read())))
    finally:
        connection.settings_dict = before


def test_the_url_is_django_s() -> None:
    """Host, port, user, password, name, and the options that libpq knows."""
    changes = {
        "HOST": "db.example.com",
        "PORT": "6432",
        "USER": "o'brien",
        "PASSWORD": "a b@c/d'\\",
        "NAME": "shop",
        "OPTIONS": {"sslmode": "require", "connect_timeout": 3, "isolation_level": 2, "server_side_binding": True},
    }
    with changed(**changes) as found:
        assert found == {
            "host": "db.example.com",
            "port": "6432",
            "user": "o'brien",
            "password": "a b@c/d'\\",
            "dbname": "shop",
            "sslmode": "require",
            "connect_timeout": "3",
        }


def test_the_url_follows_the_test_runner_s_database() -> None:
    """Django's test runner puts another name into the connection's settings."""
    with changed(NAME="test_shop") as found:
        assert found["dbname"] == "test_shop"


def test_a_role_is_assumed_as_django_does() -> None:
    """``assume_role`` is a SET ROLE of Django's; libpq is told by an option."""
    with changed(OPTIONS={"assume_role": "the owner", "options": "-c search_path=s"}) as found:
        assert found["options"] == "-c search_path=s -c role=the\\ owner"


def test_a_service_names_the_database_by_itself() -> None:
    """Django takes a service instead of a name; without both it is refused."""
    with changed(NAME="", OPTIONS={"service": "shop"}) as found:
        assert found["service"] == "shop"
        assert "dbname" not in found
    with pytest.raises(ConfigurationError, match=r"DATABASES\['default'\].*NAME"), changed(NAME="", OPTIONS={}):
        pass


def test_another_kind_of_database_is_refused() -> None:
    """Section 14: a project on SQLite is told which setting leads to Postgres."""
    connections.settings["lite"] = {**connections.settings["default"], "ENGINE": "django.db.backends.sqlite3"}
    try:
        with given(DATABASE="lite"):
            (found,) = checks.check_settings()
            assert "is of kind 'sqlite'" in found.msg
            assert "secret" not in found.msg
    finally:
        del connections["lite"]
        del connections.settings["lite"]


def test_the_models_are_read_only() -> None:
    """What an instance does next is for its steps and the client."""
    for write in (
        lambda: models.Instance(id=1).save(),
        lambda: models.Instance(id=1).delete(),
        lambda: models.Instance.objects.all().delete(),
        lambda: models.Instance.objects.update(step="x"),
        lambda: models.Transition.objects.create(),
        lambda: models.Lane.objects.bulk_create([models.Lane(id=1)]),
    ):
        with pytest.raises(models.ReadOnlyError, match="through client"):
            write()
