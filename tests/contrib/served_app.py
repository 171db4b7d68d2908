"""An app for uvicorn: a slow job, and a stream that never ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI
from starlette.responses import StreamingResponse

from gen_durable import Engine, job
from gen_durable.contrib.fastapi import Durable, lifespan


@job
async def slow(seconds: float) -> str:
    print("the step runs", flush=True)
    await asyncio.sleep(seconds)
    return "finished"


engine = Engine(machines=[slow], schema=os.environ["SCHEMA"], drain_timeout=float(os.environ.get("DRAIN", "10")))
app = FastAPI(lifespan=lifespan(engine))


@app.post("/slow/{seconds}")
async def insert(seconds: float, durable: Durable) -> int:
    return (await durable.insert(slow.bind(seconds=seconds))).id


@app.get("/stream")
async def stream() -> StreamingResponse:
    async def endless() -> AsyncIterator[str]:
        while True:
            yield "data: tick\n\n"
            await asyncio.sleep(0.05)

    return StreamingResponse(endless(), media_type="text/event-stream")
