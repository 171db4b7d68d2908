"""Text is text, whatever encoding the connection string or the database asks for."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import psycopg
import pytest
from engine_support import LONG

from gen_durable import Context, Done, Engine, Machine, Next, SyncClient, step

TEXT = "é ü ß"


class Names(Machine, name="names"):
    text: str

    @step
    async def plain(self, ctx: Context) -> Next:
        self.text += "ä"
        return Next(self.on_the_loop)

    @step(transactional=True)
    async def on_the_loop(self, ctx: Context) -> Next:
        self.text += "ö"
        return Next(self.in_a_thread)

    @step(transactional=True)
    def in_a_thread(self, ctx: Context) -> Done:
        self.text += "ü"
        return Done(self.text)


@pytest.fixture(params=["url", "database"])
async def encoded(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[str]:
    """A database whose clients would speak LATIN1: by a word of its connection string, or because it is in that."""
    name = f"latin_{uuid.uuid4().hex[:12]}"
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as admin:
        provider = "LOCALE_PROVIDER libc" if admin.info.server_version >= 150000 else ""
        how = f"ENCODING 'LATIN1' {provider} LOCALE 'C'" if request.param == "database" else ""
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 {how}".encode())
        encoding = {"client_encoding": "LATIN1"} if request.param == "url" else {}
        yield psycopg.conninfo.make_conninfo(database_url, dbname=name, **encoding)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def test_text_comes_back_as_it_was(encoded: str) -> None:
    """Section 3: state and results, in every way that they are sent and loaded."""
    engine = Engine(encoded, machines=[Names], name=uuid.uuid4().hex)
    await engine.migrate()
    async with engine:
        handle = await engine.insert(Names(text=TEXT), key=TEXT)
        assert await handle.result(timeout=LONG) == TEXT + "äöü"
        with engine.sync_client() as client:
            assert isinstance(client, SyncClient)
            assert client.get(handle.id).result == TEXT + "äöü"
