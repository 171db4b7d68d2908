"""The shop, with its worker, on http://127.0.0.1:8000 until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal

import uvicorn

from examples.checkout.database import database
from examples.fastapi_shop.app import app, engine


async def serve(port: int) -> None:
    """Serves until a signal. A development server that was started for this is stopped then."""
    async with database(engine, None):
        config = uvicorn.Config(app, port=port, timeout_graceful_shutdown=5)
        await uvicorn.Server(config).serve()


def main() -> None:
    """Ends by SIGTERM as by Ctrl-C: uvicorn hands the signal on when it has served."""
    parser = argparse.ArgumentParser(prog="python -m examples.fastapi_shop", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (default: %(default)s)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options.port))


if __name__ == "__main__":
    main()
