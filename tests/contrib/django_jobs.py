"""Tasks for the tests: a worker finds each by its path."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from django_s_tasks import TaskContext, task

runs: Counter[str] = Counter()
order: list[str] = []
threads: list[str] = []


@task
def add(a: int, b: int = 1) -> dict[str, int]:
    threads.append(threading.current_thread().name)
    return {"sum": a + b}


@task
async def add_async(a: int, b: int = 1) -> int:
    threads.append(threading.current_thread().name)
    return a + b


@task
def broken(why: str) -> None:
    raise LookupError(why)


@task
async def broken_async(why: str) -> None:
    raise ZeroDivisionError(why)


@task
def flaky(name: str, failures: int) -> int:
    runs[name] += 1
    if runs[name] <= failures:
        raise OSError(f"failure {runs[name]}")
    return runs[name]


@task(takes_context=True)
def told(context: TaskContext, n: int) -> list[Any]:
    found = context.task_result
    return [context.attempt, found.id, found.args, str(found.status), n]


@task
def note(name: str) -> None:
    order.append(name)


@task
def unstorable() -> object:
    return object()
