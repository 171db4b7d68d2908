"""The documentation as data: its pages, code blocks, links and commands."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GUIDES = DOCS / "guides"

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```[ ]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(?P<title>.+?) *$", re.MULTILINE)
COMMAND = re.compile(r"(?<![\w/.-])(?:gen-durable|python -m gen_durable)(?P<words>(?: [^\s`|;&<>#)]+)*)")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int  # of its first line of text, from 1
    info: str
    text: str

    @property
    def language(self) -> str:
        return self.info.split()[0] if self.info.split() else ""

    @property
    def runs(self) -> bool:
        return "no-run" not in self.info.split()

    def compiled(self) -> CodeType:
        """The block's code, with the page's name and line numbers; it may use ``await`` at its top level."""
        source = "\n" * (self.line - 1) + self.text
        return compile(
            source, str(self.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True, optimize=0
        )


def pages() -> list[Path]:
    """Every page of the documentation."""
    return sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text("utf-8")
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        found.append(Block(page, line, match["info"].strip(), textwrap.dedent(match["text"])))
    return [block for block in found if language is None or block.language == language]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for match in HEADING.finditer(prose(page)):
        plain = re.sub(r"[^\w\- ]", "", match["title"].replace("`", "").lower()).replace(" ", "-")
        found.add(plain if plain not in found else f"{plain}-1")
    return found


def links(page: Path) -> Iterator[str]:
    """The targets of a page's links that lead to files of this repository."""
    for match in LINK.finditer(prose(page)):
        if "://" not in match["target"] and not match["target"].startswith("mailto:"):
            yield match["target"]


def commands(page: Path) -> Iterator[list[str]]:
    """The words after ``gen-durable`` wherever a shell block or inline code names a command."""
    shell = [block.text for block in blocks(page) if block.language in ("console", "sh", "shell", "bash", "ini")]
    inline = re.findall(r"`([^`\n]+)`", prose(page))
    for text in [*shell, *inline]:
        for match in COMMAND.finditer(text.replace("\\\n", " ")):
            yield match["words"].split()


def names_of_tests(page: Path) -> list[str]:
    """The names of the tests that a page's blocks define."""
    found = [re.findall(r"^(?:async )?def (test_\w+)", block.text, re.MULTILINE) for block in blocks(page, "python")]
    return [name for names in found for name in names]


async def run_page(page: Path, then: Callable[[ModuleType], Awaitable[None]] | None = None) -> int:
    """Runs a page's python blocks, in order, in one module; answers with how many ran. ``then`` gets the module."""
    module = ModuleType("docs_" + re.sub(r"\W", "_", name_of(page)))
    # Classes look their annotations' names up in their module: so it must be one that can be found.
    sys.modules[module.__name__] = module
    ran = 0
    try:
        for block in blocks(page, "python"):
            code = block.compiled()
            if not block.runs:
                continue
            result = eval(code, module.__dict__)
            if inspect.iscoroutine(result):
                await result
            ran += 1
        if then is not None:
            await then(module)
    finally:
        del sys.modules[module.__name__]
    return ran
