"""gen_durable's tables as Django models, to read: instances with their lanes, and their history.

They are unmanaged, and a save or delete is refused: what an instance does next is decided by its steps, and by the
client (``client().cancel(...)``).
"""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

from django.conf import settings
from django.db import models

from gen_durable.contrib.django.conf import DEFAULT_SCHEMA, SETTING
from gen_durable.status import Status, TransitionKind

__all__ = ["Instance", "Lane", "ReadOnlyError", "Transition"]


def _setting(key: str, default: str) -> str:
    """Read when the models are made, before the checks that would complain of it."""
    given = getattr(settings, SETTING, None)
    value = given.get(key, default) if isinstance(given, dict) else default
    return value if isinstance(value, str) else default


def _table(name: str) -> str:
    """Quoted, with its schema: Django takes a name in quotes as it is."""
    return f'"{_setting("SCHEMA", DEFAULT_SCHEMA)}"."{name}"'


def _label(status: Status) -> str:
    """The public name; of the two that are ``runnable`` one waits for its time."""
    return "runnable later" if status is Status.SCHEDULED else status.label


class ReadOnlyError(TypeError):
    """A model of gen_durable was to be written."""


def _refused(self: Any, *_: Any, **__: Any) -> NoReturn:
    """Instead of what writes.

    Raises:
        ReadOnlyError: always.
    """
    raise ReadOnlyError("gen_durable's models are read-only: insert, signal, cancel and retry through client()")


class _Rows(models.QuerySet[Any]):
    """Rows to read."""

    create = update = delete = bulk_create = bulk_update = _refused


class _Reading(models.Manager[Any]):
    """Reads from the database of the settings, whatever a router says."""

    def get_queryset(self) -> models.QuerySet[Any]:
        """All rows."""
        return _Rows(self.model, using=_setting("DATABASE", "default"))


class _ReadOnly:
    """What the models share."""

    save = delete = _refused


class Lane(_ReadOnly, models.Model):
    """A machine version in a queue: the names that there are."""

    id = models.IntegerField(primary_key=True)
    queue = models.TextField()
    machine = models.TextField()
    version = models.IntegerField()

    objects: ClassVar[_Reading] = _Reading()

    class Meta:
        """The table of lanes."""

        managed = False
        db_table = _table("lanes")
        default_permissions = ()


class Instance(_ReadOnly, models.Model):
    """An instance, live or ended."""

    id = models.BigIntegerField(primary_key=True)
    machine = models.TextField()
    version = models.IntegerField()
    queue = models.TextField()
    step = models.TextField()
    status = models.SmallIntegerField(choices=[(int(status), _label(status)) for status in Status])
    priority = models.SmallIntegerField()
    attempt = models.IntegerField()
    crashes = models.IntegerField()
    key = models.TextField(null=True)
    state = models.JSONField()
    result = models.JSONField(null=True)
    error = models.JSONField(null=True)
    worker = models.IntegerField(null=True)
    rev = models.BigIntegerField()
    due_at = models.DateTimeField(null=True)
    inserted_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)
    parent_id = models.BigIntegerField(null=True)

    objects: ClassVar[_Reading] = _Reading()

    class Meta:
        """The view of all instances."""

        managed = False
        db_table = _table("all_instances")
        ordering: ClassVar[list[str]] = ["-id"]
        default_permissions = ("view",)
        permissions: ClassVar[list[tuple[str, str]]] = [("steer_instance", "Can cancel and retry instances")]

    def __str__(self) -> str:
        return f"{self.machine} {self.pk}" + ("" if self.key is None else f" ({self.key})")


class Transition(_ReadOnly, models.Model):
    """A row of the history. An end is not among them where the instance's own row tells it."""

    pk = models.CompositePrimaryKey("instance_id", "seq")
    instance_id = models.BigIntegerField()
    seq = models.BigIntegerField()
    at = models.DateTimeField()
    worker = models.IntegerField(null=True)
    attempt = models.IntegerField()
    outcome = models.SmallIntegerField(choices=[(int(kind), kind.label) for kind in TransitionKind])
    took = models.FloatField(null=True)
    step = models.TextField()
    error = models.JSONField(null=True)
    state = models.JSONField(null=True)

    objects: ClassVar[_Reading] = _Reading()

    class Meta:
        """The partitioned table of transitions."""

        managed = False
        db_table = _table("transitions")
        ordering: ClassVar[list[str]] = ["instance_id", "seq"]
        default_permissions = ()
