"""The office that the requests live in: its mail, and people who answer when they feel like it."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

__all__ = ["Mail", "Office", "office"]


@dataclass(frozen=True)
class Mail:
    """A mail about a request; ``number`` 1 is the question, the others are reminders."""

    id: str
    request: str
    to: str
    number: int
    what: str


class Office:
    """Sends mails, each id once, and counts what each person got about each request."""

    def __init__(self) -> None:
        self._sent: set[str] = set()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.unread: asyncio.Queue[Mail] = asyncio.Queue()
        self.changed = asyncio.Condition()

    async def send(self, mail: Mail) -> None:
        """Puts a mail on its way, unless it has been."""
        if mail.id in self._sent:
            return
        self._sent.add(mail.id)
        subject = "please approve" if mail.number == 1 else f"reminder {mail.number - 1}"
        print(f"  mail to {mail.to}: {subject}: {mail.what}", flush=True)
        async with self.changed:
            self.counts[mail.request, mail.to] += 1
            self.changed.notify_all()
        await self.unread.put(mail)

    async def until_asked(self, requests: set[str]) -> None:
        """Waits until somebody was asked about each of them."""
        async with self.changed:
            await self.changed.wait_for(lambda: requests <= {request for request, _ in self.counts})


office = Office()
