"""Counts the words of a folder by durable children, and once more in a plain loop, to compare.

``python -m examples.wordcount [FOLDER]`` ends with exit status 0 when both agree, and 1 when they do not.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from examples.checkout.database import database
from examples.wordcount.machine import CountFolder, count_file, words_of
from gen_durable import Engine
from gen_durable.errors import GenDurableError

TEXTS = Path(__file__).with_name("texts")


async def count(url: str | None, schema: str, folder: Path) -> dict[str, Any]:
    """The durable count."""
    engine = Engine(url, machines=[CountFolder, count_file], schema=schema, name="wordcount")
    async with database(engine, url):
        await engine.migrate()
        async with engine:
            handle = await engine.insert(CountFolder(folder=str(folder)))
            print(f"instance {handle.id} counts {folder}; gen-durable show {handle.id} --history --schema {schema}")
            result: dict[str, Any] = await handle.result(timeout=300)
    return result


def count_plainly(folder: Path) -> tuple[Counter[str], int, set[str]]:
    """The words, how many files, and those that can't be read."""
    words: Counter[str] = Counter()
    files, failed = 0, set()
    for path in (found for found in folder.rglob("*") if not found.is_dir()):
        try:
            words.update(words_of(path))
            files += 1
        except (OSError, UnicodeDecodeError):
            failed.add(str(path))
    return words, files, failed


def report(result: dict[str, Any], folder: Path) -> bool:
    """Prints the totals; whether they are right."""
    words, files, failed = count_plainly(folder)
    counted = Counter(result["words"])
    print(f"{counted.total()} words, {len(counted)} of them different, in {result['files']} files")
    print("most frequent: " + ", ".join(f"{word} {number}" for word, number in sorted(counted.most_common(8))))
    for path, reason in result["failed"].items():
        print(f"not read: {Path(path).relative_to(folder)}: {reason}")
    right = (counted, result["files"], set(result["failed"])) == (words, files, failed)
    print("ok: a plain loop finds the same" if right else f"WRONG: a plain loop finds {words.total()} in {files} files")
    return right


def main() -> int:
    """Exit status 0: all is right; 1: something is not; 2: it could not run."""
    parser = argparse.ArgumentParser(prog="python -m examples.wordcount", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=TEXTS, help="default: the texts of this example")
    parser.add_argument("--database-url", help="default: GEN_DURABLE_DATABASE_URL, DATABASE_URL, the embedded server")
    parser.add_argument("--schema", default="wordcount_example", help="made when missing (default: %(default)s)")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if not folder.is_dir():
        parser.error(f"{options.folder} is no folder")
    try:
        result = asyncio.run(count(options.database_url, options.schema, folder))
    except GenDurableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if report(result, folder) else 1


if __name__ == "__main__":
    sys.exit(main())
