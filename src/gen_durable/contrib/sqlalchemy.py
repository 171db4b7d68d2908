"""SQLAlchemy: mapped classes to read instances and their history by.

They are for queries of your own, joins with your tables among them. Nothing is written through them: the engine's
commits and locks are what keeps instances whole, so whatever changes one goes through its calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy import BigInteger, DateTime, MetaData, SmallInteger, case, event
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL, TEXT
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    column_property,
    declared_attr,
    mapped_column,
    relationship,
)

from gen_durable._store.operation import check_schema_name
from gen_durable.errors import InvalidArgument
from gen_durable.status import Status, TransitionKind

__all__ = ["InstanceColumns", "Models", "TransitionColumns", "models"]

_TIME = DateTime(timezone=True)


class InstanceColumns:
    """An instance, live or ended: the view ``all_instances``.

    Attributes:
        id: its number.
        machine, version, queue, step: what it is, where it waits, and its current or last step.
        status: ``runnable``, ``executing``, ``awaiting_signal``, ``awaiting_children``, ``blocked``, ``done``,
            ``failed`` or ``cancelled``, computed from ``status_number``.
        status_number: as it is stored; 0 and 1 are both ``runnable``.
        priority, attempt, crashes, key, state, result, error: as in a snapshot.
        worker: the number of the worker that holds it, or held it last.
        rev: its fencing token.
        due_at, inserted_at, updated_at, finished_at, expires_at: times; None where it has none.
        awaits: the names of signals that it waits for; children_left: on how many children.
        parent_id: the instance that spawned it.
        scope: of its key, as it is stored.
        history: its transitions, in order; parent, children: the instances.
    """

    if TYPE_CHECKING:  # computed: see ``models``
        status: Mapped[str]

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    machine: Mapped[str] = mapped_column(TEXT)
    version: Mapped[int]
    queue: Mapped[str] = mapped_column(TEXT)
    step: Mapped[str] = mapped_column(TEXT)
    status_number: Mapped[int] = mapped_column("status", SmallInteger)
    priority: Mapped[int] = mapped_column(SmallInteger)
    attempt: Mapped[int]
    crashes: Mapped[int] = mapped_column(SmallInteger)
    key: Mapped[str | None] = mapped_column(TEXT)
    state: Mapped[dict[str, Any]] = mapped_column(JSONB)
    result: Mapped[Any | None] = mapped_column(JSONB)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    worker: Mapped[int | None]
    rev: Mapped[int] = mapped_column(BigInteger)
    due_at: Mapped[datetime | None] = mapped_column(_TIME)
    inserted_at: Mapped[datetime] = mapped_column(_TIME)
    updated_at: Mapped[datetime] = mapped_column(_TIME)
    finished_at: Mapped[datetime | None] = mapped_column(_TIME)
    expires_at: Mapped[datetime | None] = mapped_column(_TIME)
    awaits: Mapped[list[str] | None] = mapped_column(ARRAY(TEXT))
    children_left: Mapped[int | None]
    parent_id: Mapped[int | None] = mapped_column(BigInteger)
    scope: Mapped[int | None] = mapped_column(SmallInteger)

    @declared_attr
    def history(cls) -> Mapped[list[Any]]:
        """Its transitions, in order."""
        return relationship(
            "Transition",
            primaryjoin="foreign(Transition.instance_id) == Instance.id",
            order_by="Transition.seq",
            viewonly=True,
        )

    @declared_attr
    def parent(cls) -> Mapped[Any]:
        """The instance that spawned it, or None."""
        return relationship(
            "Instance",
            primaryjoin="foreign(Instance.parent_id) == remote(Instance.id)",
            uselist=False,
            viewonly=True,
        )

    @declared_attr
    def children(cls) -> Mapped[list[Any]]:
        """The instances that it has spawned and whose rows are there."""
        return relationship(
            "Instance",
            primaryjoin="remote(foreign(Instance.parent_id)) == Instance.id",
            order_by="Instance.id",
            viewonly=True,
        )


class TransitionColumns:
    """One transition of the history: the table ``transitions``.

    An instance's last one is not among them where its terminal row tells as much; ``engine.history`` puts it there.

    Attributes:
        instance_id, seq: whose it is, and its place: the instance's ``rev`` after it.
        at: when it was committed.
        worker, attempt, step: who ran what.
        outcome: ``next``, ``retry``, ``sleep``, ``done``, ``failed``, ``cancelled``, ``crashed``, ``await`` or
            ``spawn``, computed from ``outcome_number``.
        took: seconds that the step ran, or None.
        error, state: where there is one, and where the history keeps it.
    """

    if TYPE_CHECKING:
        outcome: Mapped[str]

    instance_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    at: Mapped[datetime] = mapped_column(_TIME)
    worker: Mapped[int | None]
    attempt: Mapped[int]
    outcome_number: Mapped[int] = mapped_column("outcome", SmallInteger)
    took: Mapped[float | None] = mapped_column(REAL)
    step: Mapped[str] = mapped_column(TEXT)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    state: Mapped[dict[str, Any] | None] = mapped_column(JSONB)


@dataclass(frozen=True, slots=True)
class Models:
    """The classes for one schema.

    Attributes:
        Instance: mapped to the view ``all_instances``.
        Transition: mapped to the table ``transitions``.
        metadata: theirs, apart from yours; it refuses ``create_all`` and ``drop_all``.
    """

    Instance: type[InstanceColumns]
    Transition: type[TransitionColumns]
    metadata: MetaData


def models(schema: str = "gen_durable") -> Models:
    """Mapped classes that read one schema. Each call makes new ones: call it once, beside your own models.

    Raises:
        ConfigurationError: when the schema's name can't be used.
        InvalidArgument: (later) at a flush that would write one, and where tables would be created or dropped.
    """
    metadata_ = MetaData(schema=check_schema_name(schema))

    class Base(DeclarativeBase):
        metadata = metadata_

    class Instance(InstanceColumns, Base):
        __tablename__ = "all_instances"

    class Transition(TransitionColumns, Base):
        __tablename__ = "transitions"

    Instance.status = _named(Instance.__table__.c.status, {one.value: one.label for one in Status})
    Transition.outcome = _named(Transition.__table__.c.outcome, {kind.value: kind.label for kind in TransitionKind})
    for moment in ("before_insert", "before_update", "before_delete"):
        event.listen(Base, moment, _refuse_write, propagate=True)
    for moment in ("before_create", "before_drop"):
        event.listen(metadata_, moment, _refuse_tables)
    return Models(Instance, Transition, metadata_)


def _named(column: Any, names: dict[int, str]) -> Any:
    return column_property(case(names, value=column))


def _refuse_write(mapper: Any, connection: Any, target: Any) -> NoReturn:
    raise InvalidArgument(
        f"{type(target).__name__} is only for reading: use the engine's calls (insert, signal, cancel, ...) to change "
        "an instance, and expunge or refresh this object"
    )


def _refuse_tables(metadata: MetaData, connection: Any, **_: Any) -> NoReturn:
    raise InvalidArgument(
        f"the tables of schema {metadata.schema!r} are made by `gen-durable migrate`, or in an Alembic script by "
        "op.gen_durable_migrate(): keep this metadata out of create_all and drop_all"
    )
