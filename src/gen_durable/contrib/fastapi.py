"""An engine that lives as long as a FastAPI app, and its client as a dependency of routes.

::

    engine = Engine(machines=[Checkout])
    app = FastAPI(lifespan=lifespan(engine))

    @app.post("/orders/{number}")
    async def order(number: int, durable: Durable) -> int:
        return (await durable.insert(Checkout(order=number))).id

In tests ``app.dependency_overrides[get_client]`` puts another client in its place.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from fastapi import Depends

from gen_durable.client import Client
from gen_durable.contrib.starlette import get_client, lifespan

__all__ = ["Durable", "get_client", "lifespan"]

Durable: TypeAlias = Annotated[Client, Depends(get_client)]
"""The type of a route's parameter that gets the engine's client."""
