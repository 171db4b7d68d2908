"""An engine that lives as long as a Starlette app (or one of a framework on top of it).

::

    engine = Engine(machines=[Checkout])
    app = Starlette(routes=..., lifespan=lifespan(engine))

    async def order(request: Request) -> JSONResponse:
        handle = await get_client(request).insert(Checkout(order=42))
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias, TypeVar

from starlette.requests import HTTPConnection

from gen_durable.client import Client
from gen_durable.engine import Engine
from gen_durable.errors import ConfigurationError, EngineStateError

__all__ = ["get_client", "lifespan"]

STATE = "gen_durable"  # the key in the lifespan's state, and so the attribute of `request.state`

App = TypeVar("App")
Lifespan: TypeAlias = Callable[[App], AbstractAsyncContextManager[Any]]


def lifespan(
    engine: Engine, *, worker: bool = True, migrate: bool = False, inner: Lifespan[App] | None = None
) -> Callable[[App], AbstractAsyncContextManager[Mapping[str, Any]]]:
    """What an app's ``lifespan=`` takes: the engine is open from the app's start to its end.

    At the end running steps get the engine's ``drain_timeout``. The server calls it when the last response is out, so
    give it a bound for that too: a stream that never ends would keep the worker working and the process alive
    (uvicorn: ``--timeout-graceful-shutdown``).

    Args:
        engine: not started yet.
        worker: False opens only its client: steps run in processes of their own.
        migrate: whether to create or update the schema before; safe when many processes do it at once.
        inner: the app's own lifespan; it runs while the engine is open, and what it yields stays in the state.

    Raises:
        ConfigurationError: ``engine`` is not an Engine.
        DatabaseUnreachable, SchemaMissing, SchemaVersionError: (at the app's start) what stands in the way; the server
            then ends, and whoever supervises it starts it again.
    """
    if not isinstance(engine, Engine):
        raise ConfigurationError(f"lifespan({engine!r}): give the Engine itself, like lifespan(engine)")

    @contextlib.asynccontextmanager
    async def life(app: App) -> AsyncIterator[Mapping[str, Any]]:
        if migrate:
            await engine.migrate()
        async with engine if worker else engine.client():
            if inner is None:
                yield {STATE: engine}
                return
            async with inner(app) as state:
                yield {**(state or {}), STATE: engine}

    return life


def get_client(connection: HTTPConnection) -> Client:
    """The client of the engine whose :func:`lifespan` the app has, for a request or a websocket.

    Raises:
        EngineStateError: the app has no such lifespan, or the server did not run it.
    """
    client: Client | None = getattr(connection.state, STATE, None)
    if client is None:
        raise EngineStateError(
            "this app has no engine: give it lifespan=lifespan(engine) (and in tests use the client as a context "
            "manager, so that the lifespan runs)"
        )
    return client
