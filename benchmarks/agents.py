"""Starts and ends the agents: the processes in which the engines run."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

from benchmarks.board import Board
from benchmarks.envs import ROOT
from benchmarks.registry import Entry


class AgentFailed(Exception):
    """An agent ended with an error; the message holds the end of its stderr."""


class Agents:
    """Runs the commands of one engine against one database."""

    def __init__(self, entry: Entry, python: Path, url: str, board: Board, options: dict[str, Any]) -> None:
        self._entry, self._python = entry, python
        self._arguments = {"url": url, "board": str(board.path), "options": options}

    def at(self, url: str) -> Agents:
        """The same, by another way to the same database."""
        other = copy(self)
        other._arguments = {**self._arguments, "url": url}
        return other

    def call(self, command: str, limit: float = 300.0, **arguments: Any) -> dict[str, Any]:
        """Run one command to its end; its answer. Raises ``AgentFailed``."""
        process = self._start(command, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(self._line(arguments), timeout=limit)
        except subprocess.TimeoutExpired:
            raise AgentFailed(f"{self._entry.name}: {command} did not end within {limit:g} s") from None
        finally:
            end(process)
        if process.returncode:
            raise AgentFailed(f"{self._entry.name}: {command} failed: {_tail(err)}")
        answer: dict[str, Any] = json.loads(out.splitlines()[-1])
        return answer

    @contextlib.contextmanager
    def workers(self, count: int, limit: float = 20.0) -> Iterator[list[subprocess.Popen[bytes]]]:
        """``count`` worker processes, which wait at the board's gate; ended on leaving."""
        with contextlib.ExitStack() as stack:
            processes = []
            for slot in range(count):
                log = stack.enter_context(tempfile.TemporaryFile())
                process = self._start("worker", stderr=log)
                stack.callback(end, process, limit)
                processes.append(process)
                stack.callback(self._check, process, log)
                assert process.stdin
                process.stdin.write(self._line({"slot": slot}))
                process.stdin.flush()
            yield processes
            for process in processes:
                assert process.stdin
                process.stdin.close()

    def _line(self, arguments: dict[str, Any]) -> bytes:
        return json.dumps({**self._arguments, **arguments}).encode() + b"\n"

    def _start(self, command: str, stderr: Any) -> subprocess.Popen[bytes]:
        argv = [str(self._python), "-m", "benchmarks.agent", self._entry.module, command]
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=stderr)

    def _check(self, process: subprocess.Popen[bytes], log: Any) -> None:
        if process.poll():
            log.seek(0)
            raise AgentFailed(f"{self._entry.name}: a worker died: {_tail(log.read())}")


def end(process: subprocess.Popen[bytes], grace: float = 1.0) -> None:
    """End by closing stdin, or kill; never leaves the process behind."""
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()
    if process.stderr:
        process.stderr.close()


def _tail(text: bytes, lines: int = 6) -> str:
    return "\n".join(text.decode(errors="replace").strip().splitlines()[-lines:])
