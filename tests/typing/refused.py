"""What is wrong: every type checker must find something in each line with the mark, and in no other."""

from __future__ import annotations

from shop import Checkout, Resize, engine, plain, send_welcome, with_context

from gen_durable import Handle
from gen_durable.context import Context


async def machines() -> None:
    Checkout(order="x")  # expect-error: a wrong type
    Checkout()  # expect-error: a missing field
    Checkout(order=1, orders=2)  # expect-error: an unknown field
    Checkout(1)  # expect-error: fields are given by keyword
    Resize(width=1)  # expect-error: a missing field of a job
    Checkout(order=1).other  # expect-error: no such attribute  # noqa: B018
    Checkout(order=1).paid = "x"  # expect-error: a wrong type


async def inserting() -> None:
    await engine.insert(Checkout(order="x"))  # expect-error: a wrong type
    await engine.insert(Checkout)  # expect-error: the class itself
    await engine.insert(plain)  # expect-error: a job that is not bound
    await engine.insert(Checkout(order=1), kee="k")  # expect-error: an unknown option
    await engine.insert(Checkout(order=1), key=1)  # expect-error: a key is text
    await engine.insert(Checkout(order=1), delay="soon")  # expect-error: seconds or a timedelta
    await engine.insert(Checkout(order=1), on_conflict="ignore")  # expect-error: none of the three
    await engine.insert_many([1])  # expect-error: no instance
    await engine.signal_or_insert(Checkout(order=1), key="k")  # expect-error: no signal's name


async def jobs(ctx: Context) -> None:
    plain.bind()  # expect-error: a missing argument
    plain.bind(n="x")  # expect-error: a wrong type
    plain.bind(n=1, m=2)  # expect-error: an unknown argument
    plain.bind(1, 2)  # expect-error: too many
    send_welcome.bind(user_id=7, templ="x")  # expect-error: an unknown argument
    with_context.bind(ctx, "a")  # expect-error: bind leaves the context out
    with_context("a")  # expect-error: a call does not
    result: str = await plain(1)  # expect-error: it returns an int
    print(result)


async def reading(handle: Handle) -> None:
    await engine.get(1.5)  # expect-error: an id or a key
    await engine.signal(1)  # expect-error: no name
    handle.results()  # expect-error: no such call
    number: int = await engine.get(1)  # expect-error: a snapshot
    print(number)
