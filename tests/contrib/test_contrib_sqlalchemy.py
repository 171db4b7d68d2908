"""SQLAlchemy, the real one: classes that read instances and refuse to write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from gen_durable import Await, Context, Done, Engine, Machine, Spawn, step
from gen_durable.contrib.sqlalchemy import Models, models
from gen_durable.errors import ConfigurationError, InvalidArgument


class Leaf(Machine, name="Leaf"):
    n: int

    @step
    async def start(self, ctx: Context) -> Done:
        return Done(self.n)


class Tree(Machine, name="Tree"):
    size: int

    @step
    async def start(self, ctx: Context) -> Spawn:
        return Spawn([Leaf(n=n) for n in range(self.size)], then=self.rest)

    @step
    async def rest(self, ctx: Context) -> Await:
        return Await("go", then=self.end)

    @step
    async def end(self, ctx: Context) -> Done:
        return Done([child.result for child in ctx.children])


@pytest.fixture
def read(migrated: str) -> Models:
    return models(migrated)


@pytest.fixture
def session(database_url: str) -> Iterator[Session]:
    engine = sa.create_engine(re.sub(r"^postgres(ql)?:", "postgresql+psycopg:", database_url))
    with Session(engine) as session:
        yield session
    engine.dispose()


@pytest.fixture
async def tree(build: Callable[..., Engine]) -> int:
    """A family that has run to its end, beside one that is not due yet."""
    async with build(Tree, Leaf) as engine:
        handle = await engine.insert(Tree(size=2), key="tree")
        await handle.signal("go")
        await handle.result(timeout=10)
        await engine.insert(Leaf(n=9), key="later", delay=3600)
    return handle.id


def test_instances_are_read(read: Models, session: Session, tree: int) -> None:
    """Section 12: live and ended ones alike, by their names, with their family and their history."""
    instance = read.Instance
    later, ended = session.scalars(sa.select(instance).where(instance.key.is_not(None)).order_by(instance.key)).all()
    assert (later.key, later.status, later.status_number, later.state) == ("later", "runnable", 1, {"n": 9})
    assert later.due_at is not None
    assert later.due_at.tzinfo is not None
    assert (ended.id, ended.status, ended.result, ended.step) == (tree, "done", [], "end")
    assert [child.result for child in ended.children] == [0, 1]
    assert ended.children[0].parent is ended
    assert [transition.outcome for transition in ended.history] == ["spawn", "await"]
    assert [transition.step for transition in ended.history] == ["start", "rest"]
    done = sa.select(sa.func.count()).where(instance.status == "done", instance.machine == "Leaf")
    assert session.scalar(done) == 2


def test_every_column_is_there(read: Models, session: Session) -> None:
    """What the view and the table have, in their order and of their type: nothing is forgotten when they change."""
    inspector = sa.inspect(session.connection())
    for name, table in read.metadata.tables.items():
        real = inspector.get_columns(name.partition(".")[2], schema=read.metadata.schema)
        mine = {column.name: column for column in table.columns}
        assert list(mine) == [column["name"] for column in real]
        for column in real:
            type_ = mine[column["name"]].type.compile(session.bind.dialect)  # type: ignore[union-attr]
            assert type_ == column["type"].compile(session.bind.dialect), column["name"]  # type: ignore[union-attr]


def test_nothing_is_written(read: Models, session: Session, tree: int) -> None:
    """A flush that would insert, change or delete one is refused, and says which calls do that."""
    row = session.get(read.Instance, tree)
    assert row is not None
    row.priority = 5
    with pytest.raises(InvalidArgument, match="Instance is only for reading"):
        session.flush()
    session.rollback()
    session.delete(row)
    with pytest.raises(InvalidArgument, match="use the engine's calls"):
        session.flush()
    session.rollback()
    session.add(read.Transition(instance_id=tree, seq=99, at=sa.func.now(), attempt=0, outcome_number=0, step="x"))  # type: ignore[call-arg]
    with pytest.raises(InvalidArgument, match="Transition is only for reading"):
        session.flush()


def test_no_table_is_made_or_dropped(read: Models, session: Session) -> None:
    """`create_all` would make a table where the view is to be."""
    for change in (read.metadata.create_all, read.metadata.drop_all):
        with pytest.raises(InvalidArgument, match="gen-durable migrate"):
            change(session.connection())
    with pytest.raises(ConfigurationError, match="Bad"):
        models("Bad")


def test_two_schemas_have_classes_of_their_own(read: Models) -> None:
    """Section 11: several engines in one process."""
    other = models("other")
    assert "FROM other.all_instances" in str(sa.select(other.Instance.id))
    assert f"FROM {read.metadata.schema}.all_instances" in str(sa.select(read.Instance.id))
