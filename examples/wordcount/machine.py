"""Scatter and gather: a folder's machine spawns a job for each file and a machine for each folder in it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import field
from pathlib import Path

from gen_durable import Context, Done, Machine, Spawn, job, step

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def words_of(path: Path) -> Counter[str]:
    """How often each word is in a text file."""
    return Counter(word.lower() for word in WORD.findall(path.read_text("utf-8")))


@job(max_attempts=1)  # what can't be read now can't be read in a second either
def count_file(path: str) -> dict[str, int]:
    """A plain function: it runs in a thread, and may block."""
    return words_of(Path(path))


class CountFolder(Machine):
    """A folder; its result is the sum over its files and folders, and what could not be read."""

    folder: str
    entries: list[str] = field(default_factory=list)

    @step
    def scatter(self, ctx: Context) -> Spawn:
        found = sorted(Path(self.folder).iterdir())
        self.entries = [str(path) for path in found]  # committed with the children, in the same order
        return Spawn(
            [CountFolder(folder=str(path)) if path.is_dir() else count_file.bind(str(path)) for path in found],
            then=self.gather,
        )

    @step
    def gather(self, ctx: Context) -> Done:
        words: Counter[str] = Counter()
        files, failed = 0, {}
        for path, child in zip(self.entries, ctx.children, strict=True):
            if child.error is not None:
                failed[path] = f"{child.error['type']}: {child.error['message']}"
            elif child.machine == "CountFolder":
                words.update(child.result["words"])
                files += child.result["files"]
                failed |= child.result["failed"]
            else:
                words.update(child.result)
                files += 1
        return Done({"words": words, "files": files, "failed": failed})
