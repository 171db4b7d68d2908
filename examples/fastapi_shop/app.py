"""The shop's web app: ``uvicorn examples.fastapi_shop.app:app``, or ``python -m examples.fastapi_shop``.

``GEN_DURABLE_DATABASE_URL`` or ``DATABASE_URL`` names the database (else it is the development server), ``SHOP_SCHEMA``
the engine's schema. The shop's own tables are made where the connection's ``search_path`` leads.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from psycopg.conninfo import conninfo_to_dict
from pydantic import BaseModel, Field
from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from examples.fastapi_shop.machine import Checkout
from examples.fastapi_shop.tables import SHELVES, Base, Item, Order, Shipment
from gen_durable import Engine
from gen_durable.contrib.fastapi import Durable, lifespan
from gen_durable.errors import NoSuchInstance

SCHEMA = os.environ.get("SHOP_SCHEMA", "fastapi_shop")
PATIENCE = float(os.environ.get("SHOP_PATIENCE", "86400"))

engine = Engine(machines=[Checkout], queues={"shop": 20}, schema=SCHEMA, name="fastapi_shop")


@contextlib.asynccontextmanager
async def shop(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """The shop's own connections, and its tables with something on the shelves."""
    parameters = conninfo_to_dict(await engine.database_url())
    database = create_async_engine("postgresql+psycopg://", connect_args=parameters)
    async with database.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        shelves = [{"name": name, "stock": count} for name, count in SHELVES.items()]
        await connection.execute(insert(Item).values(shelves).on_conflict_do_nothing())
    yield {"sessions": async_sessionmaker(database)}
    await database.dispose()


app = FastAPI(title="A shop", lifespan=lifespan(engine, migrate=True, inner=shop))


async def open_session(request: Request) -> AsyncIterator[AsyncSession]:
    """A session for one request."""
    async with request.state.sessions() as session:
        yield session


Database = Annotated[AsyncSession, Depends(open_session)]


class Wish(BaseModel):
    item: str
    quantity: int = Field(default=1, gt=0)


class Payment(BaseModel):
    event: str
    order: int
    amount: int


@app.post("/orders", status_code=201)
async def place(wish: Wish, durable: Durable, session: Database) -> dict[str, Any]:
    """The order's row, the goods from the shelf and the checkout are there together, or not at all."""
    async with session.begin():
        if await session.get(Item, wish.item) is None:
            raise HTTPException(404, f"there is no {wish.item}")
        order = Order(item=wish.item, quantity=wish.quantity)
        session.add(order)
        await session.flush()
        await durable.insert(Checkout(order=order.id, patience=PATIENCE), key=key_of(order.id), conn=session)
        left = Item.stock - wish.quantity
        taken = await session.execute(update(Item).where(Item.name == wish.item, left >= 0).values(stock=left))
        if not taken.rowcount:  # raising rolls back: no order, and no checkout that waits for its payment
            raise HTTPException(409, f"there are not {wish.quantity} of {wish.item}")
        return {"order": order.id}


@app.post("/payments")
async def pay(payment: Payment, durable: Durable) -> dict[str, bool]:
    """The payment provider's webhook; it may call twice, which counts once."""
    try:
        new = await durable.signal(
            key_of(payment.order), "paid", {"amount": payment.amount}, dedup_key=f"payment:{payment.event}"
        )
    except NoSuchInstance:
        raise HTTPException(404, f"no order {payment.order} waits for a payment") from None
    return {"new": new}


@app.get("/orders/{number}")
async def status(number: int, durable: Durable, session: Database) -> dict[str, Any]:
    """How far an order is."""
    order = await session.get(Order, number)
    if order is None:
        raise HTTPException(404, f"there is no order {number}")
    shipment = (await session.scalars(select(Shipment).where(Shipment.order_id == number))).one_or_none()
    checkout = await durable.get(key_of(number))
    return {
        "order": order.id,
        "status": order.status,
        "paid": None if shipment is None else shipment.paid,
        "checkout": checkout.status,
        "step": checkout.step,
        "waits_for": checkout.awaits,
    }


def key_of(order: int) -> str:
    return f"order:{order}"
