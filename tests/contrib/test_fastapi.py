"""The engine within a FastAPI or Starlette app, in process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gen_durable import Engine, job
from gen_durable.contrib import fastapi as contrib
from gen_durable.contrib import starlette as below
from gen_durable.contrib.fastapi import Durable, get_client, lifespan
from gen_durable.errors import ConfigurationError, DatabaseUnreachable, EngineStateError

Build = Callable[..., Engine]


@job
async def double(n: int) -> int:
    return 2 * n


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Runs an app's lifespan as a server does, and answers requests with its state."""
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(with_state), base_url="http://test") as http:
            yield http


def shop(engine: Engine, **options: Any) -> FastAPI:
    app = FastAPI(lifespan=lifespan(engine, **options))

    @app.post("/double/{n}")
    async def insert(n: int, durable: Durable) -> int:
        return (await durable.insert(double.bind(n=n))).id

    @app.get("/double/{id}")
    async def result(id: int, durable: Durable) -> int:
        answer = await durable.result(id, timeout=10)
        assert isinstance(answer, int)
        return answer

    return app


async def test_a_route_gets_the_client_and_the_worker_runs_in_the_app(build: Build) -> None:
    """Section 2: ``async with engine`` for an app's life: the worker runs inside it, routes have its client."""
    engine = build(double)
    async with serving(shop(engine)) as http:
        inserted = (await http.post("/double/21")).json()
        assert (await http.get(f"/double/{inserted}")).json() == 42
        assert len(await engine.workers()) == 1
    with pytest.raises(EngineStateError):
        await engine.workers()


async def test_a_web_process_may_leave_the_work_to_others(build: Build) -> None:
    """Section 2: ``worker=False`` opens the client only; what a route inserts another process's worker runs."""
    web, other = build(double), build(double)
    async with serving(shop(web, worker=False)) as http:
        inserted = (await http.post("/double/4")).json()
        assert await web.workers() == []
        assert (await web.get(inserted)).status == "runnable"
        async with other:
            assert (await http.get(f"/double/{inserted}")).json() == 8


async def test_migrate_makes_the_schema(database_url: str, schema: str) -> None:
    """Section 11: ``migrate=True`` creates the schema before the engine opens; twice does no harm."""
    for _ in range(2):
        engine = Engine(database_url, machines=[double], schema=schema, name=schema)
        async with serving(shop(engine, migrate=True)) as http:
            assert (await http.post("/double/1")).status_code == 200


async def test_the_app_s_own_lifespan_runs_within(build: Build) -> None:
    """Its start may use the engine, its end too, and what it yields is in the state besides the engine."""
    engine, seen = build(double), []

    @contextlib.asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        handle = await engine.insert(double.bind(n=1))
        yield {"first": handle.id}
        seen.append(await handle.result(timeout=10))

    app = FastAPI(lifespan=lifespan(engine, inner=own))

    @app.get("/")
    async def first(request: Request, durable: Durable) -> list[Any]:
        return [request.state.first, durable is engine]

    async with serving(app) as http:
        ((first_id, same),) = [(await http.get("/")).json()]
        assert same is True
        assert (await engine.get(first_id)).machine == "double"
    assert seen == [2]


async def test_an_error_of_the_inner_lifespan_closes_the_engine(build: Build) -> None:
    """An app that can't start leaves no engine behind."""
    engine = build(double)

    @contextlib.asynccontextmanager
    async def own(app: Any) -> AsyncIterator[None]:
        raise LookupError("no settings")
        yield

    with pytest.raises(LookupError):
        async with serving(FastAPI(lifespan=lifespan(engine, inner=own))):
            pass
    async with engine:
        assert len(await engine.workers()) == 1


async def test_starlette_without_fastapi(build: Build) -> None:
    """The same lifespan; the client is asked for by hand."""

    async def insert(request: Request) -> JSONResponse:
        handle = await below.get_client(request).insert(double.bind(n=int(request.path_params["n"])))
        return JSONResponse(await handle.result(timeout=10))

    app = Starlette(routes=[Route("/{n}", insert)], lifespan=below.lifespan(build(double)))
    async with serving(app) as http:
        assert (await http.get("/8")).json() == 16


async def test_the_dependency_can_be_replaced_in_tests(build: Build) -> None:
    """``dependency_overrides``: the route gets what the test gives it."""
    engine = build(double)
    app = shop(build(double))
    app.dependency_overrides[get_client] = lambda: engine
    async with (
        engine,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http,
    ):
        inserted = (await http.post("/double/3")).json()
        assert (await http.get(f"/double/{inserted}")).json() == 6


async def test_a_websocket_gets_it_too(build: Build) -> None:
    """The dependency is for whatever has a connection."""
    app = FastAPI(lifespan=lifespan(build(double)))
    sent: list[Any] = []

    @app.websocket("/ws")
    async def ws(websocket: WebSocket, durable: Durable) -> None:
        await websocket.accept()
        handle = await durable.insert(double.bind(n=5))
        await websocket.send_json(await handle.result(timeout=10))

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async with app.router.lifespan_context(app) as state:
        scope = {"type": "websocket", "path": "/ws", "headers": [], "query_string": b"", "subprotocols": []}
        await app({**scope, "state": dict(state)}, receive, send)
    assert [message.get("text") for message in sent] == [None, "10"]


async def test_without_the_lifespan_a_route_says_what_is_missing() -> None:
    """Section 14: an app that was not given the lifespan gets an error that says so."""
    app = FastAPI()

    @app.get("/")
    async def route(durable: Durable) -> None: ...

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        with pytest.raises(EngineStateError, match=r"give it lifespan=lifespan\(engine\)"):
            await http.get("/")


async def test_a_lifespan_of_something_else_is_refused() -> None:
    """Section 14: at the earliest moment: when it is made."""
    with pytest.raises(ConfigurationError, match="give the Engine itself"):
        lifespan("postgresql://h/d")  # type: ignore[arg-type]


async def test_a_database_that_is_away_ends_the_start() -> None:
    """Section 14: the app does not start; the message names the place and not the password."""
    engine = Engine("postgresql://user:secret@127.0.0.1:1/d", machines=[double], name="away")
    with pytest.raises(DatabaseUnreachable, match="port 1") as raised:
        async with serving(shop(engine)):
            pass
    assert "secret" not in str(raised.value)


def test_the_public_names_are_there() -> None:
    for module in (contrib, below):
        assert all(hasattr(module, name) for name in module.__all__)
