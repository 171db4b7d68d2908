"""The pytest plugin: what it gives to a project's tests, and that it does nothing unasked."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import psycopg
import pytest

from gen_durable import Engine, job, testing
from gen_durable.testing._schemas import Schemas

pytest_plugins = ["pytester"]

PLUGIN = "gen_durable.pytest_plugin"
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

TESTS = """
    import asyncio
    from gen_durable import Engine, job, testing

    @job
    async def double(n: int) -> int:
        return 2 * n

    {mark}
    async def test_one(durable_engine):
        engine = durable_engine(machines=[double])
        async with engine.client():
            handle = await engine.insert(double.bind(21), delay=3600)
            await testing.drain(engine)
            await testing.assert_done(engine, handle.id, result=42)
            assert handle.id == 1

    {mark}
    async def test_two_is_as_clean_as_one(durable_engine):
        await test_one(durable_engine)

    {mark}
    async def test_with_a_worker(durable_engine, durable_schema):
        engine = durable_engine(machines=[double], queues={{"default": 2}})
        assert engine.settings.schema == durable_schema
        async with engine:
            handle = await engine.insert(double.bind(1), delay=3600)
            await testing.advance(engine, 3600)
            assert await handle.result(timeout=10) == 2
"""
STRICT = ["-W", "error", "--strict-markers", "-p", "no:cacheprovider"]
ASYNCIO = [
    "-p",
    "pytest_asyncio.plugin",
    "-o",
    "asyncio_mode=auto",
    "-o",
    "asyncio_default_fixture_loop_scope=function",
]


@job
async def noop() -> None: ...


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    """With these plugins only, as where others are not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        return pytester.runpytest_subprocess("-p", PLUGIN, *STRICT, *options)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    """The database of this run, as a user gives it."""
    monkeypatch.setenv("DATABASE_URL", database_url)


def write_tests(pytester: pytest.Pytester, mark: str) -> None:
    pytester.makepyfile(TESTS.format(mark=mark.replace("\n", "\n    ")))


@pytest.mark.usefixtures("given")
def test_it_goes_with_pytest_asyncio(pytester: pytest.Pytester) -> None:
    """Section 13: a clean schema for each test, on the database of DATABASE_URL."""
    write_tests(pytester, "")
    run(pytester, *ASYNCIO).assert_outcomes(passed=3)


@pytest.mark.usefixtures("given")
def test_it_goes_with_anyio(pytester: pytest.Pytester) -> None:
    write_tests(pytester, "import pytest\n@pytest.mark.anyio\n@pytest.mark.parametrize('anyio_backend', ['asyncio'])")
    run(pytester, "-p", "anyio.pytest_plugin").assert_outcomes(passed=3)


@pytest.mark.usefixtures("given")
def test_it_goes_without_any_plugin_for_async_tests(pytester: pytest.Pytester) -> None:
    """The fixtures are plain functions, and need no event loop."""
    pytester.makepyfile(
        TESTS.format(mark="")
        + """
    def test_by_hand(durable_engine):
        asyncio.run(test_one(durable_engine))
"""
    )
    run(pytester, "-k", "by_hand").assert_outcomes(passed=1, deselected=3)


def test_without_a_database_it_starts_one_and_ends_it(pytester: pytest.Pytester) -> None:
    """Section 13: on the embedded server; with xdist each worker has its own."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("n", [1, 2])
        def test_url(durable_database, durable_schema, n):
            print("URL", durable_database)
        """
    )
    done = run(pytester, "-p", "xdist", "-n", "2", "--dist", "each", "-rP")
    done.assert_outcomes(passed=4)
    urls = set(re.findall(r"URL (\S+)", done.stdout.str()))
    assert len(urls) == 2
    for url in urls:
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url)


def test_unused_it_starts_nothing(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        f"""
        import {PLUGIN} as plugin

        def start():
            raise AssertionError("started")

        plugin.temporary = start
        """
    )
    pytester.makepyfile(
        """
        import threading

        def test_plain():
            assert threading.active_count() == 1

        def test_asked(durable_database):
            pass
        """
    )
    run(pytester).assert_outcomes(passed=1, errors=1)


def test_pytest_finds_it_and_the_package_does_not_need_pytest() -> None:
    """The entry point bears the module's name: a conftest may name the plugin too. The rest never imports pytest."""
    project = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {PLUGIN: PLUGIN}
    assert not any(name.startswith("pytest") for name in project["dependencies"])
    program = "import sys, gen_durable.testing, gen_durable.cli; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# Schemas --------------------------------------------------------------------------------------------


@pytest.fixture
def schemas(database_url: str) -> Any:
    made = Schemas(database_url)
    yield made
    made.close()


async def test_a_schema_is_emptied_and_used_again(schemas: Schemas, database_url: str) -> None:
    """Each test finds it as it was made: no rows, ids from 1, no pause, the real time, no days of a far future."""
    name = schemas.take()
    rows: list[Any] = []
    for _ in range(2):
        engine = Engine(database_url, schema=name, name=name, machines=[noop])
        async with engine.client():
            assert (await engine.list()).items == []
            assert await engine.queues() == []
            start = await testing.clock(engine)
            handle = await engine.insert(noop.bind(), key="k", delay=86_400 * 100)
            assert handle.id == 1
            await testing.drain(engine)
            await testing.drain(engine)
            await engine.pause_queue("default")
        schemas.give_back(name)
        with psycopg.connect(database_url) as connection:
            query = "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace ORDER BY 1"
            rows.append((start.date(), [row[0] for row in connection.execute(query, (name,))]))
        assert schemas.take() == name
    assert rows[0] == rows[1]
    schemas.give_back(name)


async def test_where_something_still_runs_the_next_test_gets_another(schemas: Schemas, database_url: str) -> None:
    """A worker that a test has left running must not run the next one's instances."""
    name = schemas.take()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            f"INSERT INTO {name}.workers VALUES (9, 'w', 'h', 1, '{{}}', '{{}}', false, now(), now())".encode()
        )
        schemas.give_back(name)
        assert connection.execute("SELECT to_regnamespace(%s)", (name,)).fetchone() == (None,)
    other = schemas.take()
    assert other != name
    schemas.give_back(other)
