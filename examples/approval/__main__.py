"""Four requests to buy something; the people who decide are quick, slow, or away.

``python -m examples.approval`` ends with exit status 0 when each request ended as it must, and 1 when one did not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import uuid
from dataclasses import dataclass

from examples.approval.machine import MAILS, Approval
from examples.approval.office import office
from examples.checkout.database import database
from gen_durable import Engine
from gen_durable.errors import GenDurableError, InstanceFailed


@dataclass(frozen=True)
class Case:
    """A request: who answers which mail, and what must come of it, with the mails that each must have got at least."""

    what: str
    answers: dict[tuple[str, int], bool]  # (person, number of the mail): yes or no
    outcome: str
    mails: dict[str, int]
    patience: float = 0.5


CASES = {
    # Ann's answer comes from another process, while no worker runs.
    "laptop": Case("a laptop", {}, "approved by ann", {"ann": 1}, patience=60),
    "desk": Case("a desk", {("ann", 3): True}, "approved by ann", {"ann": 3}),
    "crane": Case("a crane", {("bob", 1): False}, "bob refused", {"ann": MAILS, "bob": 1}),
    "plant": Case("a plant", {}, "nobody answered", {"ann": MAILS, "bob": MAILS}),
}


async def people(engine: Engine, run: str) -> None:
    """Reads the mail and answers, as the cases say."""
    while True:
        mail = await office.unread.get()
        case = CASES.get(mail.request.removeprefix(f"{run}:"))
        yes = None if case is None else case.answers.get((mail.to, mail.number))
        if yes is not None:
            print(f"  {mail.to} says {'yes' if yes else 'no'} to {mail.what}", flush=True)
            await engine.signal(mail.request, "answer", {"by": mail.to, "yes": yes}, dedup_key=mail.id)


async def answer_by_command(url: str, schema: str, key: str) -> None:
    """The same from a shell."""
    payload = json.dumps({"by": "ann", "yes": True})
    command = ("signal", key, "answer", "--payload", payload, "--schema", schema, "--database-url", url)
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "gen_durable", *command)
    if await process.wait():
        raise SystemExit(1)


async def outcome(engine: Engine, key: str) -> str:
    """How a request ended, in words."""
    try:
        result = await engine.result(key, timeout=60)
    except InstanceFailed as failed:
        return str((failed.error or {}).get("message"))
    return f"approved by {result['by']}"


async def example(url: str | None, schema: str) -> bool:
    """Runs all cases; whether each ended as it must."""
    engine = Engine(url, machines=[Approval], schema=schema, name="approval")
    run = f"run-{uuid.uuid4().hex[:8]}"
    keys = {name: f"{run}:{name}" for name in CASES}
    async with database(engine, url) as found:
        await engine.migrate()
        print("Four requests are made:")
        async with engine:
            for name, case in CASES.items():
                request = Approval(what=case.what, approver="ann", boss="bob", patience=case.patience)
                await engine.insert(request, key=keys[name])
            await office.until_asked(set(keys.values()))
        print(
            "The worker is stopped; the requests wait in the database. Ann says yes to a laptop, from another process:"
        )
        await answer_by_command(found, schema, keys["laptop"])
        print("A worker starts again:")
        async with engine:
            answering = asyncio.create_task(people(engine, run))
            outcomes = {name: await outcome(engine, key) for name, key in keys.items()}
            answering.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await answering
    right = [report(name, outcomes[name], keys[name]) for name in CASES]
    return all(right)


def report(name: str, came: str, key: str) -> bool:
    """Prints what came of a case; whether that is right."""
    case = CASES[name]
    mails = {person: office.counts[key, person] for person in case.mails}
    right = came == case.outcome and all(mails[person] >= least for person, least in case.mails.items())
    got = ", ".join(f"{count} to {person}" for person, count in mails.items())
    print(f"{'ok   ' if right else 'WRONG'} {case.what}: {came}; mails: {got}")
    return right


def main() -> int:
    """Exit status 0: all is right; 1: something is not; 2: it could not run."""
    parser = argparse.ArgumentParser(prog="python -m examples.approval", description=__doc__)
    parser.add_argument("--database-url", help="default: GEN_DURABLE_DATABASE_URL, DATABASE_URL, the embedded server")
    parser.add_argument("--schema", default="approval_example", help="made when missing (default: %(default)s)")
    options = parser.parse_args()
    try:
        return 0 if asyncio.run(example(options.database_url, options.schema)) else 1
    except GenDurableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
