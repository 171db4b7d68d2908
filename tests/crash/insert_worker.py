"""The process that the test of racing inserts starts twice: each line on its stdin is one round of inserts."""

from __future__ import annotations

import asyncio
import json
import sys

from gen_durable import Engine, job
from gen_durable._store.inserting import insert_all
from gen_durable.client.inserting import BulkItem


@job
async def nothing() -> None: ...


async def main() -> None:
    config = json.loads(sys.argv[1])
    engine = Engine(config["url"], schema=config["schema"], name=config["name"], machines=[nothing], queues={})
    async with engine:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            given = json.loads(line)
            if given["together"]:  # all of them in one transaction, as within a caller's own
                checked = [engine._check(BulkItem(nothing.bind(), key)) for key in given["keys"]]
                lanes = await engine._lanes_for({lane: spec for spec, lane, _ in checked})
                for _, lane, row in checked:
                    row.lane = lanes[lane]
                rows = [row for _, _, row in checked]
                answer = await engine._session.together(insert_all(engine._sql, rows, together=True))
                found = [[place.id, place.duplicate] for place in answer.placed]
            else:
                items = [BulkItem(nothing.bind(), key) for key in given["keys"]]
                found = [[item.handle.id, item.duplicate] for item in await engine.insert_many(items)]
            print(json.dumps(found), flush=True)


asyncio.run(main())
