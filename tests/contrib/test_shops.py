"""The shops, each as the process that a reader starts, driven over HTTP as a customer would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
import psycopg
import pytest
from server import started

pytestmark = pytest.mark.crash

TABLES = {"fastapi_shop": ("orders", "shipments"), "django_shop": ("shop_order", "shop_shipment")}


@dataclass
class Shop:
    """A running shop, and its database."""

    http: httpx.AsyncClient
    database: str
    orders: str
    shipments: str

    async def place(self, item: str = "teapot", quantity: int = 1) -> httpx.Response:
        wish = {"item": item, "quantity": quantity, "email": "ann@example.com"}
        return await self.http.post("/orders", json=wish)

    async def pay(self, order: int, event: str) -> httpx.Response:
        return await self.http.post("/payments", json={"event": event, "order": order, "amount": 4200})

    async def status(self, order: int, **wanted: Any) -> dict[str, Any]:
        """An order's status page, when it shows what is wanted."""
        async with asyncio.timeout(20):
            while True:
                found: dict[str, Any] = (await self.http.get(f"/orders/{order}")).json()
                if all(found[name] == value for name, value in wanted.items()):
                    return found
                await asyncio.sleep(0.05)

    def count(self, table: str) -> int:
        with psycopg.connect(self.database) as connection:
            found = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
        assert found is not None
        return int(found[0])


@pytest.fixture(params=list(TABLES))
async def shop(request: pytest.FixtureRequest, own_database: str, schema: str) -> AsyncIterator[Shop]:
    env = {"GEN_DURABLE_DATABASE_URL": own_database, "SHOP_SCHEMA": schema}
    async with started("-m", f"examples.{request.param}", "--port", "0", env=env) as server:
        async with httpx.AsyncClient(base_url=await server.url(), timeout=20) as http:
            yield Shop(http, own_database, *TABLES[request.param])
        assert await server.end() == 0, server.output
    assert "Traceback" not in server.output, server.output


async def test_an_order_from_placing_to_shipment(shop: Shop) -> None:
    """R5, R11, R20: placed in one transaction with its checkout, paid by a webhook that calls twice, shipped once."""
    placed = await shop.place()
    assert placed.status_code == 201, placed.text
    order = placed.json()["order"]
    found = await shop.status(order, checkout="awaiting_signal")
    assert (found["status"], found["paid"], found["waits_for"]) == ("placed", None, ["paid"])
    paid = await shop.pay(order, "e1")
    assert (paid.status_code, paid.json()) == (200, {"new": True})
    assert (await shop.pay(order, "e1")).status_code in (200, 404)  # it may have been shipped meanwhile
    # (The page reads the order first, then its checkout.)
    found = await shop.status(order, checkout="done", status="shipped")
    assert found["paid"] == 4200
    assert shop.count(shop.shipments) == 1
    assert (await shop.pay(order, "e2")).status_code == 404


async def test_an_order_that_fails_leaves_no_instance(shop: Shop) -> None:
    """R20: refused when the shelf is too empty: the order's row, the shelf and the checkout roll back together."""
    codes = [(await shop.place("kettle", quantity)).status_code for quantity in (2, 2, 9, 1, 1)]
    assert codes == [201, 409, 409, 201, 409]
    assert (await shop.place("sofa")).status_code == 404
    assert shop.count(shop.orders) == 2
    assert shop.count("all_instances") == 2
    assert (await shop.pay(10**6, "e3")).status_code == 404
    assert (await shop.http.get("/orders/1000000")).status_code == 404
