"""The client of the payment provider."""

from __future__ import annotations

import aiohttp


class Declined(Exception):
    """The card was refused: asking again would not help."""


class Payments:
    """Charges cards over HTTP; the steps of a process share its connections."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http: aiohttp.ClientSession | None = None

    async def charge(self, *, idempotency_key: str, order: str, cents: int, card: str) -> str:
        """Charges a card and returns the charge's id; with a key that was used before, the charge of that time.

        Raises:
            Declined: the card was refused.
            aiohttp.ClientError: no good answer, so it is not known whether the card was charged.
        """
        self._http = self._http or aiohttp.ClientSession(self._url)
        body = {"order": order, "cents": cents, "card": card}
        async with self._http.post("/charges", json=body, headers={"Idempotency-Key": idempotency_key}) as answer:
            if answer.status == 402:
                raise Declined((await answer.json())["error"])
            answer.raise_for_status()
            return str((await answer.json())["charge"])

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
