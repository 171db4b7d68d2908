"""The code of the documentation runs, against a real database."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from docs_support import GUIDES, ROOT, blocks, name_of, names_of_tests, pages, run_page

from gen_durable import Engine, SyncClient

TESTING = GUIDES / "testing.md"
WITH_CODE = [page for page in pages() if blocks(page, "python")]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, database_url: str, migrated: str, tmp_path: Path) -> None:
    """What a reader has: a database in the environment, an empty folder; engines keep to the test's schema."""
    monkeypatch.setenv("GEN_DURABLE_DATABASE_URL", database_url)
    monkeypatch.setitem(Engine.__init__.__kwdefaults__, "schema", migrated)
    monkeypatch.setitem(SyncClient.__init__.__kwdefaults__, "schema", migrated)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
async def test_the_python_blocks_of_a_page_run_in_order(page: Path) -> None:
    """Every block runs as it stands, in one namespace for each page; those marked ``no-run`` compile."""
    ran = await run_page(page)
    assert ran or not any(block.runs for block in blocks(page, "python"))


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("name", names_of_tests(TESTING))
async def test_the_tests_of_the_testing_guide_pass(name: str, durable_engine: Callable[..., Engine]) -> None:
    """Each with fixtures of its own, as pytest would run it."""

    async def run(module: ModuleType) -> None:
        test = getattr(module, name)
        given = {"durable_engine": durable_engine}
        await test(**{wanted: given[wanted] for wanted in inspect.signature(test).parameters})

    await run_page(TESTING, run)


@pytest.mark.usefixtures("world")
async def test_the_first_program_of_the_readme_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    """Its ``main()``, which it calls when it is run as a script."""
    block = blocks(ROOT / "README.md", "python")[0]
    module = ModuleType("readme_program")
    sys.modules[module.__name__] = module
    try:
        exec(block.text, module.__dict__)
        await module.main()
    finally:
        del sys.modules[module.__name__]
    assert "{'paid': 100, 'order': 42}" in capsys.readouterr().out
    assert block.text.endswith('if __name__ == "__main__":\n    asyncio.run(main())\n')


async def test_a_block_that_fails_is_reported_at_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner itself: blocks share names, may await, and a failed assertion names the page and the line."""
    page = tmp_path / "page.md"
    monkeypatch.setattr("docs_support.ROOT", tmp_path)
    page.write_text(
        "```python\nimport asyncio\n\nn = await asyncio.sleep(0, result=1)\n```\n\n"
        "```python no-run\nraise SystemExit\n```\n\n```python\nassert n == 1\nassert n == 2\n```\n"
    )
    with pytest.raises(AssertionError) as raised:
        await run_page(page)
    last = raised.traceback[-1]
    assert (str(last.path), last.lineno + 1) == (str(page), 13)


def test_few_blocks_are_not_run() -> None:
    """``no-run`` is for what needs another program; a guide that hides behind it proves nothing."""
    given = [block for page in pages() for block in blocks(page, "python")]
    assert len([block for block in given if not block.runs]) * 10 <= len(given)
