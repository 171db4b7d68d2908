"""The floor in SQL alone: pgbench, a client in C, runs the floor's claim and its commit in turns on the floor's table.

No Python runs between a claim and its commit, and no job does: what is left is what the database needs. Each worker
process is one pgbench with one session; the ids, tokens and states of a batch go to it and back as arrays.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from benchmarks import floor, programs

CYCLE = f"""
WITH claimed AS ({floor.CLAIM % {"worker": "1", "batch": ":batch"}})
SELECT array_agg(id) AS ids, array_agg(rev) AS revs, array_agg(state) AS states FROM claimed \\gset
UPDATE jobs j SET status = 2, state = o.state, rev = j.rev + 1
FROM unnest(:ids::bigint[], :revs::int[], :states::jsonb[]) AS o (id, rev, state)
WHERE j.id = o.id AND j.rev = o.rev
RETURNING j.id, j.rev;
"""


class Adapter(floor.Adapter):
    @asynccontextmanager
    async def worker(self) -> AsyncIterator[floor.Inserter]:
        """Its part of all jobs is done on entering: pgbench runs a number of cycles, not for ever."""
        async with await floor.connect(self._url) as connection:
            cursor = await connection.execute("SELECT count(*) FROM jobs")
            row = await cursor.fetchone()
            assert row is not None
            batch, workers = self._options.get("batch", 500), self._board.ready()
            own = len(range(self._board.slot, row[0], workers))
            first = await self._run(batch, -(-row[0] // (batch * workers)))
            self._board.report(own, first)
            yield floor.Inserter(connection)

    async def _run(self, batch: int, cycles: int) -> float:
        """Run so many cycles; when the first one started, by ``time.monotonic``."""
        program = programs.find("pgbench")
        if program is None:
            raise FileNotFoundError("pgbench was there when the run started, and is not any more")
        parts: dict[str, Any] = conninfo_to_dict(self._url)
        secret = {"PGPASSWORD": str(parts.pop("password", ""))}  # arguments can be seen by everybody
        settings = {"PGOPTIONS": "-c plan_cache_mode=force_generic_plan -c jit=off"}
        with tempfile.TemporaryDirectory() as folder:
            script, log = Path(folder) / "cycle.sql", Path(folder) / "log"
            script.write_text(CYCLE)
            argv = [str(program), "--no-vacuum", "--protocol=prepared", f"--file={script}", f"--define=batch={batch}"]
            argv += [f"--transactions={cycles}", "--log", f"--log-prefix={log}", make_conninfo(**parts)]
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=os.environ | secret | settings,
            )
            _, errors = await process.communicate()
            if process.returncode:
                raise RuntimeError(f"pgbench ended with {process.returncode}: {errors.decode(errors='replace')}")
            (written,) = Path(folder).glob("log.*")
            return started(written.read_text())


def started(log: str) -> float:
    """When the first transaction of pgbench's log started: it notes microseconds taken, and when it was done."""
    _, _, took, _, seconds, micros = (int(part) for part in log.split("\n", 1)[0].split())
    return time.monotonic() - time.time() + seconds + (micros - took) / 1e6
