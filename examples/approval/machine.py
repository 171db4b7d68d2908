"""A purchase request: ask, remind, escalate, until somebody who may decide has answered."""

from __future__ import annotations

from examples.approval.office import Mail, office
from gen_durable import Await, Backoff, Context, Done, Machine, Next, Stop, step

MAILS = 3  # to each who is asked: the question and two reminders


class Approval(Machine, retry=Backoff(max_attempts=5, initial=0.1)):
    """One request; its fields are the durable state."""

    what: str
    approver: str
    boss: str
    patience: float  # seconds between two mails
    mails: int = 0  # to the one who is asked now
    escalated: bool = False

    @step
    async def ask(self, ctx: Context) -> Await:
        self.mails += 1
        person = self.boss if self.escalated else self.approver
        # The same id when this step runs twice: the office sends no mail of one id twice.
        await office.send(Mail(f"{ctx.id}:{person}:{self.mails}", ctx.key or "", person, self.mails, self.what))
        return Await("answer", then=self.decide, timeout=self.patience)

    @step
    async def decide(self, ctx: Context) -> Await | Next | Done | Stop:
        may = {self.approver, self.boss} if self.escalated else {self.approver}
        for answer in ctx.awaited:
            if answer.payload["by"] not in may:
                continue
            if not answer.payload["yes"]:
                return Stop(f"{answer.payload['by']} refused")
            return Done({"by": answer.payload["by"]})
        if not ctx.timed_out:  # an answer of somebody else
            return Await("answer", then=self.decide, timeout=self.patience)
        if self.mails < MAILS:
            return Next(self.ask)
        if self.escalated:
            return Stop("nobody answered")
        self.escalated, self.mails = True, 0
        return Next(self.ask)
