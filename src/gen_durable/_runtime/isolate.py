"""Runs a step's coroutine in a context of its own, without a task of its own."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from typing import Any

__all__ = ["isolated"]


@types.coroutine
def isolated(coroutine: Coroutine[Any, Any, Any], on_wait: Callable[[], None]) -> Generator[Any, Any, Any]:
    """Awaits ``coroutine`` in a copy of the current context, so that context variables can't leak into the next step.

    ``on_wait`` is called when the coroutine first waits for something.
    """
    run = copy_context().run
    try:
        waits_for = run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    on_wait()
    while True:
        try:
            answer = yield waits_for
        except GeneratorExit:
            run(coroutine.close)
            raise
        except BaseException as error:  # noqa: BLE001  # handed to the coroutine, whatever it is
            resume = functools.partial(coroutine.throw, error)
        else:
            resume = functools.partial(coroutine.send, answer)
        try:
            waits_for = run(resume)
        except StopIteration as stop:
            return stop.value
