"""What is right: no type checker may find anything here, and every type is the one that is said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from shop import Checkout, Resize, engine, plain, send_welcome, with_context

from gen_durable import Handle, Machine, Snapshot
from gen_durable.client import BulkItem, Inserted
from gen_durable.context import Context


async def inserting() -> None:
    handle = await engine.insert(Checkout(order=42, paid=1), key="order:42", delay=timedelta(seconds=5))
    assert_type(handle, Handle)
    assert_type(await engine.insert(send_welcome.bind(user_id=7), at=datetime.now(UTC)), Handle)
    assert_type(await engine.insert(Resize(path="a"), on_conflict="replace", scope=("live", "done")), Handle)
    many = await engine.insert_many([Checkout(order=1), BulkItem(plain.bind(n=1), key="k"), Resize(path="a", width=1)])
    assert_type(many, list[Inserted])
    assert_type(many[0].handle, Handle)
    assert_type(many[0].duplicate, bool)
    assert_type(await engine.signal_or_insert(Checkout(order=1), key="k", name="paid"), Handle)


async def reading(handle: Handle) -> None:
    found = await engine.get("order:42")
    assert_type(found, Snapshot)
    assert_type(found.id, int)
    assert_type(await handle.result(timeout=5), Any)
    assert_type(await handle.signal("paid", {"amount": 1}, dedup_key="d"), bool)
    assert_type(await engine.cancel(handle.id, cascade=True), bool)


async def jobs(ctx: Context) -> None:
    assert_type(send_welcome.bind(7, template="x"), Machine)
    assert_type(with_context.bind(to="a"), Machine)
    assert_type(with_context.bind("a"), Machine)
    assert_type(await plain(1), int)
    assert_type(await send_welcome(7), dict[str, int])
    assert_type(with_context(ctx, "a"), str)
    assert_type(await Resize(path="a").run(ctx), dict[str, int])
    assert_type(Checkout(order=1).order, int)
