"""A row that goes alone: what "one_born" does not insert, "plain" does, and every place that was kept comes back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from engine_support import Build, Sql, eventually

from gen_durable import job


@pytest.mark.parametrize("why", ["paused", "capped", "no worker", "cancelled between"])
async def test_not_born(build: Build, sql: Sql, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """R19, R25."""

    @job
    async def simple() -> int:
        return 1

    async with build(simple, queues={"default": 3}) as engine:
        await (await engine.insert(simple.bind())).result(timeout=15)
        worker, queue = engine._worker, engine._worker.queues["default"]

        async def calm() -> bool:
            return queue.empty and not queue.running

        await eventually(calm)
        if why == "paused":
            await sql("UPDATE {s}.lanes SET paused = true")
        elif why == "capped":
            await sql("INSERT INTO {s}.limits (kind, name, amount, changed_at) VALUES ('queue', 'default', 5, now())")
        sent: list[str] = []
        fetch = engine._session.fetch

        async def watched(request: Any) -> Any:
            sent.append(request.statement.name)
            if why == "cancelled between" and request.statement.name.endswith("plain"):
                raise asyncio.CancelledError
            if why in ("no worker", "cancelled between") and request.statement.name.endswith("one_born"):
                names = list(request.parameters)
                at = names.index(worker.id)
                names[at] = 7
                request = type(request)(request.statement, names)
            return await fetch(request)

        monkeypatch.setattr(engine._session, "fetch", watched)
        if why == "cancelled between":
            with pytest.raises(asyncio.CancelledError):
                await engine.insert(simple.bind())
        else:
            handle = await engine.insert(simple.bind())
        assert [name for name in sent if "inserting" in name] == ["inserting/one_born", "inserting/plain"]
        rows = await sql("SELECT status, worker, rev FROM {s}.instances")
        assert queue.expected == 0
        monkeypatch.undo()
        if why == "paused":
            assert rows == [(0, None, 0)]
            await sql("UPDATE {s}.lanes SET paused = false")
        if why == "capped":
            await sql("DELETE FROM {s}.limits")
        if why != "cancelled between":
            assert await handle.result(timeout=15) == 1
        assert await (await engine.insert(simple.bind())).result(timeout=15) == 1
