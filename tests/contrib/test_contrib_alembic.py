"""Alembic, the real one: our migrations inside of somebody's, online and as a script."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations

from gen_durable import Engine, job
from gen_durable._store.migrating import latest_version
from gen_durable.contrib.alembic import excluding
from gen_durable.contrib.sqlalchemy import models
from gen_durable.errors import ConfigurationError, InvalidArgument, SchemaVersionError


@job(name="double")
async def double(n: int) -> int:
    return 2 * n


ENV = """
from alembic import context
from sqlalchemy import create_engine, pool

config = context.config
url, table = config.attributes["url"], config.attributes["table"]
if context.is_offline_mode():
    context.configure(dialect_name="postgresql", version_table=table)
    with context.begin_transaction():
        context.run_migrations()
else:
    with create_engine(url, poolclass=pool.NullPool).connect() as connection:
        context.configure(connection=connection, version_table=table)
        with context.begin_transaction():
            context.run_migrations()
"""
SCRIPT = """
from alembic import op
import sqlalchemy as sa
import gen_durable.contrib.alembic

revision, down_revision = {revision!r}, {down!r}

def upgrade():
    {upgrade}

def downgrade():
    {downgrade}
"""
TIMEOUT = "SELECT current_setting('lock_timeout')"


class Project:
    """A folder with an Alembic environment."""

    def __init__(self, folder: Path, url: str, schema: str) -> None:
        self.schema = schema
        self.url = url
        (folder / "versions").mkdir(parents=True)
        (folder / "env.py").write_text(ENV)
        self.folder = folder
        self.last: str | None = None
        self.output = StringIO()
        self.config = Config(output_buffer=self.output)
        self.config.set_main_option("script_location", str(folder))
        self.config.set_main_option("path_separator", "os")
        self.config.attributes["url"] = re.sub(r"^postgres(ql)?:", "postgresql+psycopg:", url)
        self.config.attributes["table"] = f"alembic_{schema}"

    def revision(self, upgrade: str, downgrade: str = "pass") -> None:
        number = str(len(list(self.folder.glob("versions/*.py"))) + 1)
        text = SCRIPT.format(revision=number, down=self.last, upgrade=upgrade, downgrade=downgrade)
        (self.folder / "versions" / f"r{number}.py").write_text(text)
        self.last = number

    def ask(self, query: str) -> list[Any]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def version(self) -> int | None:
        if self.ask(f"SELECT to_regclass('{self.schema}.migrations')") == [(None,)]:
            return None
        ((version,),) = self.ask(f"SELECT max(version) FROM {self.schema}.migrations")
        assert isinstance(version, int)
        return version

    def shape(self) -> list[Any]:
        """All that is in the schema, as the catalog describes it."""
        columns = self.ask(
            "SELECT table_name, column_name, data_type, column_default, is_nullable, ordinal_position "
            f"FROM information_schema.columns WHERE table_schema = '{self.schema}' ORDER BY 1, 6"
        )
        functions = self.ask(
            "SELECT proname, pg_get_functiondef(oid) FROM pg_proc "
            f"WHERE pronamespace = '{self.schema}'::regnamespace ORDER BY 1, 2"
        )
        indexes = self.ask(
            f"SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = '{self.schema}' ORDER BY 1, 2"
        )
        return [*columns, *functions, *indexes]


@pytest.fixture
def project(tmp_path: Path, database_url: str, schema: str) -> Iterator[Project]:
    found = Project(tmp_path / "env", database_url, schema)
    yield found
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"SET client_min_messages = error; DROP TABLE IF EXISTS alembic_{schema}".encode())


@pytest.fixture
def alchemy(database_url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(re.sub(r"^postgres(ql)?:", "postgresql+psycopg:", database_url))
    yield engine
    engine.dispose()


async def works(database_url: str, schema: str) -> None:
    engine = Engine(database_url, machines=[double], schema=schema, name=schema)
    assert await engine.migrate() == [], "there is nothing left to do"
    async with engine:
        assert await (await engine.insert(double.bind(n=4))).result(timeout=10) == 8


async def test_upgrade_makes_what_migrate_makes(project: Project, database_url: str) -> None:
    """Section 11: the Alembic-friendly form: head, and head again."""
    project.revision(f"op.gen_durable_migrate(schema={project.schema!r})")
    command.upgrade(project.config, "head")
    command.upgrade(project.config, "head")
    assert project.version() == latest_version()
    made = project.shape()
    await works(database_url, project.schema)
    project.ask(f"DROP SCHEMA {project.schema} CASCADE")
    await Engine(database_url, schema=project.schema, name=project.schema).migrate()
    assert project.shape() == made


async def test_upgrade_in_steps_and_over_what_is_there(project: Project, database_url: str) -> None:
    """Section 11: each script has its version; one for which there is nothing to do does nothing."""
    project.revision(f"op.gen_durable_migrate(schema={project.schema!r}, to=2)")
    project.revision(f"op.gen_durable_migrate(schema={project.schema!r}, to={latest_version()})")
    project.revision(f"op.gen_durable_migrate(schema={project.schema!r}, to=1)")
    command.upgrade(project.config, "1")
    assert project.version() == 2
    assert project.ask(f"SELECT to_regproc('{project.schema}.insert_instance')") == [(None,)]
    command.upgrade(project.config, "head")
    assert project.version() == latest_version()
    await works(database_url, project.schema)


def test_it_is_in_the_script_s_transaction(project: Project) -> None:
    """R20's spirit: what fails after it takes it along; and what the transaction has set is as it was."""
    project.revision(f"op.gen_durable_migrate(schema={project.schema!r}); op.execute('SELECT 1 / 0')")
    with pytest.raises(sa.exc.DataError):
        command.upgrade(project.config, "head")
    assert project.version() is None


def test_the_transaction_s_settings_stay(alchemy: sa.Engine, schema: str) -> None:
    """What follows in the same transaction waits for locks as long as it was told to."""
    with alchemy.begin() as connection:
        connection.exec_driver_sql("SET LOCAL lock_timeout = '7s'")
        operations: Any = Operations(MigrationContext.configure(connection))
        operations.gen_durable_migrate(schema)
        assert connection.exec_driver_sql(TIMEOUT).scalar() == "7s"


def test_the_offline_script_makes_the_same_schema(project: Project, database_url: str) -> None:
    """Section 11: printed, applied by psycopg alone; a second time it changes nothing."""
    project.revision(f"op.gen_durable_migrate(schema={project.schema!r}, to=3)")
    project.revision(f"op.gen_durable_migrate(schema={project.schema!r})")
    command.upgrade(project.config, "head", sql=True)
    script = project.output.getvalue()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SET client_min_messages = error")
        connection.execute(script.encode())
        assert project.version() == latest_version()
        offline = project.shape()
        again = script.replace("CREATE TABLE alembic_", "CREATE TABLE IF NOT EXISTS alembic_").replace(
            f"INSERT INTO alembic_{project.schema} (version_num) VALUES ('1')",
            f"DELETE FROM alembic_{project.schema}; INSERT INTO alembic_{project.schema} VALUES ('1')",
        )
        connection.execute(again.encode())
        assert project.shape() == offline
        connection.execute(f"DROP SCHEMA {project.schema} CASCADE; DROP TABLE alembic_{project.schema}".encode())
    command.upgrade(project.config, "head")
    assert project.shape() == offline


async def test_downgrade_is_a_drop_that_is_asked_for(project: Project, database_url: str) -> None:
    """Section 11: forward-only; a drop refuses while something lives there, unless it is told not to."""
    drop = f"op.gen_durable_drop(schema={project.schema!r}"
    project.revision(f"op.gen_durable_migrate(schema={project.schema!r})", f"{drop})")
    command.upgrade(project.config, "head")
    async with Engine(database_url, machines=[double], schema=project.schema, name=project.schema, queues={}) as client:
        await client.insert(double.bind(n=1))
    with pytest.raises(sa.exc.DBAPIError, match="holds live instances"):
        command.downgrade(project.config, "base")
    assert project.version() == latest_version()
    project.ask(f"DELETE FROM {project.schema}.instances")
    command.downgrade(project.config, "base")
    assert project.version() is None
    project.revision("pass", f"{drop}, discard=True)")
    command.upgrade(project.config, "head")
    project.ask(f"INSERT INTO {project.schema}.queues (name) VALUES ('x')")
    command.downgrade(project.config, "1")
    assert project.version() is None


def test_what_is_refused(project: Project) -> None:
    """Section 14: before anything runs; and a newer schema is left alone."""
    operations: Any = Operations(MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True}))
    for wrong in (0, latest_version() + 1, "6", True):
        with pytest.raises(ConfigurationError, match=re.escape(f"to={wrong!r}")):
            operations.gen_durable_migrate(to=wrong)
    with pytest.raises(ConfigurationError, match="Bad"):
        operations.gen_durable_drop("Bad")
    with pytest.raises(InvalidArgument, match="discard='yes'"):
        operations.gen_durable_drop(discard="yes")
    project.revision(f"op.gen_durable_migrate(schema={project.schema!r})")
    command.upgrade(project.config, "head")
    project.ask(f"INSERT INTO {project.schema}.migrations (version, name) VALUES (99, 'x')")
    project.revision(f"op.gen_durable_migrate(schema={project.schema!r})")
    with pytest.raises(SchemaVersionError, match="version 99"):
        command.upgrade(project.config, "head")


@pytest.mark.parametrize("also", [None, lambda thing, name, *_: name != "mine"])
def test_autogenerate_leaves_our_tables_alone(
    project: Project, alchemy: sa.Engine, also: Callable[..., bool] | None
) -> None:
    """It would drop what is in the database and create what the models name; the helper keeps it off both."""
    project.revision(f"op.gen_durable_migrate(schema={project.schema!r})")
    command.upgrade(project.config, "head")
    mine = sa.MetaData()
    sa.Table("mine", mine, sa.Column("id", sa.BigInteger, primary_key=True), schema=None)

    def touched(**options: Any) -> set[tuple[str, str | None]]:
        with alchemy.connect() as connection:
            context = MigrationContext.configure(
                connection,
                opts={
                    "include_schemas": True,
                    "include_name": lambda name, kind, parents: kind != "schema" or name in (None, project.schema),
                    **options,
                },
            )
            found = compare_metadata(context, [models(project.schema).metadata, mine])  # type: ignore[arg-type]
        return {(one[0], one[1].schema) for one in found if one[0] in ("add_table", "remove_table")}

    assert {("remove_table", project.schema), ("add_table", project.schema)} & touched()
    ours = touched(include_object=excluding(project.schema, also=also))
    assert (("add_table", None) in ours) is (also is None)
    assert not [one for one in ours if one[1] == project.schema]
