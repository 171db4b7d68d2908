"""A worker process of the demo, ``python -m examples.checkout.worker``: drains at SIGTERM and at its parent's end."""

from __future__ import annotations

import asyncio

from examples.checkout.app import engine
from examples.checkout.processes import end_with_parent
from examples.checkout.services import payments, shop


async def main() -> None:
    try:
        await engine.run()
    finally:
        await payments.close()
        await shop.close()


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(main())
