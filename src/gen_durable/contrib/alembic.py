"""Alembic: this package's migrations inside of yours.

Importing the module gives ``op`` two operations, to be used in a migration script::

    import gen_durable.contrib.alembic  # noqa: F401

    def upgrade() -> None:
        op.gen_durable_migrate(to=6)

    def downgrade() -> None:
        op.gen_durable_drop()

They run in the transaction of the script, with any driver of SQLAlchemy's for Postgres, and in offline mode
(``alembic upgrade head --sql``) they are printed; not in an ``autocommit_block``, since a lock keeps out others until
the end of the transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from alembic.operations import MigrateOperation, Operations

from gen_durable._store.migrating import guarded_drop_sql, latest_version, migration_statements, version_sql
from gen_durable._store.operation import check_schema_name
from gen_durable.errors import InvalidArgument, SchemaVersionError

__all__ = ["DropSchema", "MigrateSchema", "excluding"]


class MigrateSchema(MigrateOperation):
    """``op.gen_durable_migrate(schema="gen_durable", to=None)``: creates or updates the schema.

    Args:
        schema: its name.
        to: the version to bring it to; a schema that is there already, or further, is left alone. None is the newest
            that the installed package knows: then the script does more when it runs with a newer package.

    Raises:
        ConfigurationError: when the schema's name can't be used, or the package knows no such version.
        SchemaVersionError: the schema is newer than this package.
    """

    def __init__(self, schema: str = "gen_durable", to: int | None = None) -> None:
        self.schema = check_schema_name(schema)
        self.to = to
        migration_statements(schema, to)  # refuses what it can't do before anything runs

    @classmethod
    def gen_durable_migrate(cls, operations: Operations, schema: str = "gen_durable", to: int | None = None) -> None:
        """See the class."""
        operations.invoke(cls(schema, to))


class DropSchema(MigrateOperation):
    """``op.gen_durable_drop(schema="gen_durable", discard=False)``: drops the schema with all that is in it.

    There is no other way back: migrations of this package only go forward.

    Args:
        schema: its name; nothing happens where it is not there.
        discard: drop it also while instances live in it; else that is an error of the database's.

    Raises:
        ConfigurationError: when the schema's name can't be used.
        InvalidArgument: ``discard`` is neither True nor False.
    """

    def __init__(self, schema: str = "gen_durable", discard: bool = False) -> None:
        self.schema = check_schema_name(schema)
        if not isinstance(discard, bool):
            raise InvalidArgument(f"discard={discard!r}: use True or False")
        self.discard = discard

    @classmethod
    def gen_durable_drop(cls, operations: Operations, schema: str = "gen_durable", discard: bool = False) -> None:
        """See the class."""
        operations.invoke(cls(schema, discard))


def _migrate(operations: Operations, operation: MigrateSchema) -> None:
    test_clock = False
    if not operations.get_context().as_sql:
        test_clock = _look(operations, operation.schema)
    _run(operations, migration_statements(operation.schema, operation.to, test_clock=test_clock))


def _drop(operations: Operations, operation: DropSchema) -> None:
    _run(operations, [guarded_drop_sql(operation.schema, discard=operation.discard)])


Operations.register_operation("gen_durable_migrate")(MigrateSchema)
Operations.register_operation("gen_durable_drop")(DropSchema)
Operations.implementation_for(MigrateSchema)(_migrate)
Operations.implementation_for(DropSchema)(_drop)


def _look(operations: Operations, schema: str) -> bool:
    """Refuses a schema that is newer than this package; answers whether it has a test clock."""
    is_there, version, has_test_clock = version_sql(schema)
    bind = operations.get_bind()
    if bind.exec_driver_sql(is_there).scalar():
        current = int(bind.exec_driver_sql(version).scalar_one())
        if current > latest_version():
            raise SchemaVersionError(
                f"schema {schema!r} is at version {current}, newer than this package's {latest_version()}: "
                "upgrade gen-durable"
            )
    return bool(bind.exec_driver_sql(has_test_clock).scalar())


def _run(operations: Operations, statements: Iterable[str]) -> None:
    context = operations.get_context()
    for statement in statements:
        if context.as_sql:
            context.impl.static_output(statement)
        else:  # as it stands: it has colons and percent signs that are no parameters
            bind = operations.get_bind()
            bind.exec_driver_sql(statement, execution_options={"no_parameters": True})


def excluding(*schemas: str, also: Callable[..., bool] | None = None) -> Callable[..., bool]:
    """An ``include_object`` for ``context.configure``: autogenerate leaves this package's tables alone.

    Args:
        schemas: the names of the schemas; without any, ``gen_durable``.
        also: an ``include_object`` of yours, which is asked about everything else.

    Raises:
        ConfigurationError: when a name can't be one of our schemas.
    """
    ours = {check_schema_name(schema) for schema in schemas or ("gen_durable",)}

    def include_object(thing: Any, name: str | None, kind: str, reflected: bool, compare_to: Any) -> bool:
        schema = getattr(thing, "schema", None) or getattr(getattr(thing, "table", None), "schema", None)
        if schema in ours:
            return False
        return also is None or also(thing, name, kind, reflected, compare_to)

    return include_object
