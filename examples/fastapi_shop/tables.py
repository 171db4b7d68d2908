"""The shop's own tables, in SQLAlchemy's words."""

from __future__ import annotations

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["SHELVES", "Base", "Item", "Order", "Shipment"]

SHELVES = {"kettle": 3, "teapot": 100}
"""What the shop has when it opens."""


class Base(DeclarativeBase):
    """All tables."""


class Item(Base):
    """Something to sell, and how many of it are left."""

    __tablename__ = "items"

    name: Mapped[str] = mapped_column(primary_key=True)
    stock: Mapped[int]


class Order(Base):
    """What a customer wants."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(ForeignKey("items.name"))
    quantity: Mapped[int]
    status: Mapped[str] = mapped_column(default="placed")


class Shipment(Base):
    """What has left the house; one for an order."""

    __tablename__ = "shipments"

    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"), primary_key=True)
    paid: Mapped[int]
