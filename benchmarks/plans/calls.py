"""One call of each hot statement among the rows of ``stock``, and what it may touch there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from benchmarks.plans.stock import BATCH, BIG, HOLDER, ME, Stock


def encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def outcome(id_: int, rev: int, op: int, **fields: Any) -> dict[str, Any]:
    """One element of a commit's list: op 0 goes on, 1 goes back, 2 ends, 3 waits for a signal, 4 for its children."""
    basic: dict[str, Any] = {"id": id_, "rev": rev, "op": op, "kind": 0, "ran": "one", "tried": 0, "took": 0.25}
    fresh = {"step": "two", "attempt": 0, "crashes": 0}
    by_op: tuple[dict[str, Any], ...] = (
        {"step": "two"},
        {"step": "one", "attempt": 0, "crashes": 0, "delay": 0.0},
        {"keep": 86400.0, "kind": 3},
        fresh | {"awaits": ["go"], "kind": 7},
        fresh | {"children": 1, "kind": 8},
    )
    return basic | {"history": 1} | by_op[op] | fields


@dataclass(frozen=True)
class Call:
    """One execution: which indexes it may walk, how many rows of the big tables and how many pages it may touch."""

    label: str
    statement: str
    values: dict[str, Any]
    indexes: set[str]
    rows: int
    pages: int
    whole: set[str] = field(default_factory=set)  # indexes that are walked from an end, to a LIMIT


def calls(mine: list[tuple[int, int]], stock: Stock) -> list[Call]:
    """One call of each statement; ``mine`` are claims of the worker ``ME``: ids and tokens."""
    half = stock.mixed // 2
    wants = [{"lane": lane, "pool": 0, "room": BATCH, "solo": False} for lane in (1, 2)]
    none = dict.fromkeys(["machine", "queue", "statuses", "key_prefix"])
    signals = range(1, 5 * BATCH)
    batch = [
        outcome(id_, rev, n % 5, kind=[0, 0, 3, 7, 8][n % 5], delay=5.0, signals=[signals[n], signals[n] + 1])
        for n, (id_, rev) in enumerate(mine[: 3 * BATCH])
    ]
    first = sorted({BIG, *(id_ for id_, _ in mine[: 3 * BATCH])})
    ids = [id_ for id_, _ in mine[:BATCH]] + [stock.ended_id(n) for n in range(1, BATCH + 1)]
    plain = {"states": encode([{}] * BATCH), "step": "s", "priority": 0, "notify": True}
    plain |= {"parent_id": None, "parent_spawn": None}
    one = {"lane": 1, "step": "s", "priority": 0, "state": "{}"}
    held = [stock.blocked_id(n) for n in range(1, BATCH + 1)]
    rows = [{"lane": 1 + n % 2, "step": "s", "state": {}} | ({"key": f"new{n}"} if n % 2 else {}) for n in range(BATCH)]
    claims = [{"id": id_, "rev": rev} for id_, rev in mine[:BATCH]]
    reap = {"worker": 0, "heard": True, "watched": True, "lease": 0.003, "grace": 1.0, "batch": BATCH, "keep": True}
    signal = {
        "id": None,
        "key": None,
        "name": "go",
        "payload": "1",
        "dedup": "d9",
        "notify": True,
        "worker": ME,
        "lanes": [1],
    }
    alone = {"id": mine[0][0], "rev": mine[0][1], "worker": ME, "mark": None, "state": None, "ran": "one", "tried": 0,
             "took": 0.1}  # fmt: skip
    places = [{"lane": lane, "pool": 0, "room": BATCH} for lane in (1, 2)]
    ends = {"worker": ME, "pools": encode(places), "most": 1000, "report": False}
    family = {"instances_parent", "finished_parent"}
    id_, key = {"finished_id", "instances_pkey"}, {"finished_key", "instances_key"}
    return [
        Call("claim of one lane", "claiming/claim", {"worker": ME, "wants": encode([wants[0] | {"solo": True}])},
             {"instances_ready", "instances_pkey", "signals_pkey"}, 4 * BATCH, 4000),
        Call("claim of two lanes", "claiming/claim", {"worker": ME, "wants": encode(wants)},
             {"instances_ready", "instances_pkey", "signals_pkey"}, 7 * BATCH, 4000),
        Call("left", "claiming/left", {"lanes": [1, 2]}, {"instances_ready"}, 4, 200),
        Call("commit of all kinds", "committing/commit",
             {"worker": ME, "outcomes": encode(batch), "first": encode(first), "wake": ["q"]},
             {"instances_pkey", "signals_pkey"}, 9 * BATCH, 20000),
        Call("commit that goes on", "committing/commit",
             {"worker": ME, "first": "[]", "wake": [],
              "outcomes": encode([outcome(*claim, 0) for claim in mine[:BATCH]])},
             {"instances_pkey", "signals_pkey"}, 3 * BATCH, 5000),
        Call("ends", "committing/end", ends | {"outcomes": encode([outcome(*claim, 2) for claim in mine[:BATCH]])},
             {"instances_pkey", "signals_pkey"}, 3 * BATCH, 4000),
        Call("ends that hand slots on", "committing/end",
             ends | {"worker": HOLDER, "outcomes": encode([outcome(id_, 0, 2) for id_ in held])},
             {"instances_pkey", "instances_line"}, 5 * BATCH, 8000),
        Call("ends of children", "committing/end_joined",
             {"worker": ME, "outcomes": encode([outcome(*claim, 2) for claim in mine[:BATCH]]), "first": encode([BIG])},
             {"instances_pkey", "signals_pkey"}, 4 * BATCH, 4000),
        Call("busy", "committing/busy", {"ids": encode(ids)}, {"instances_pkey"}, 4 * BATCH, 3000),
        # The first of a session looks the partition of its terminal row up, which takes 70 pages of the catalogue.
        Call("end alone", "committing/end_alone", alone | {"result": "1", "keep": 60.0}, {"instances_pkey"}, 1, 120),
        Call("go on alone", "committing/go_on_alone",
             alone | {"step": "two", "error": None, "kind": 0, "history": 1}, {"instances_pkey"}, 1, 60),
        Call("locate", "committing/locate", {"ids": encode(ids)}, id_, 3 * BATCH, 5000),
        Call("stands", "committing/stands", {"id": ids[0], "rev": 0, "worker": ME}, {"instances_pkey"}, 1, 60),
        Call("release", "claiming/release", {"worker": ME, "claims": encode(claims)}, {"instances_pkey"}, BATCH, 3000),
        Call("mine", "claiming/mine", {"worker": ME}, {"instances_claims"}, 500, 1200),
        Call("promote", "timing/promote", {"batch": BATCH}, {"instances_timers", "instances_pkey"}, 3 * BATCH, 4000),
        Call("admit", "limiting/admit",
             {"given": [f"cg{n}" for n in range(BATCH + 1, 2 * BATCH)], "most": 1000, "worker": None, "pools": None,
              "report": False}, set(), 0, 8000),
        Call("reap", "workers/reap", reap, {"instances_claims", "instances_pkey"}, 5 * BATCH, 8000,
             {"instances_claims"}),
        Call("heartbeat", "workers/heartbeat", {"worker": ME, "locked": False, "lanes": [1]}, set(), 0, 30),
        Call("insert", "inserting/insert", {"rows": encode(rows), "notify": True, "soon": 5.0, "worker": ME}, set(), 0,
             3000),
        Call("insert, plain", "inserting/plain", plain | {"lane": 1, "worker": ME}, set(), 0, 3000),
        Call("insert, one", "inserting/one", one, set(), 0, 60),
        Call("insert, one as a claim", "inserting/one_born", one | {"worker": ME}, set(), 0, 60),
        Call("holders", "inserting/holders", {"keys": encode([f"k{20 * n}" for n in range(1, BATCH + 1)])},
             {"instances_key"}, BATCH, 800),
        Call("by id, live", "reading/by_id", {"id": half}, id_, 1, 40),
        Call("by id, ended", "reading/by_id", {"id": stock.ended_id(500)}, id_, 2, 40),
        Call("by key, live", "reading/by_key", {"key": f"k{half}"}, key, 1, 40),
        Call("by key, ended", "reading/by_key", {"key": "f500"}, key, 11, 60),
        Call("history", "reading/history", {"id": stock.ended_id(500)}, {"transitions_instance", "finished_id"}, 2, 60),
        Call("first page", "reading/page", none | {"before": None, "limit": 50}, id_, 110, 600),
        Call("page in the middle", "reading/page", none | {"before": half, "limit": 50}, id_, 110, 600),
        Call("sweep", "pruning/sweep", {"batch": BATCH},
             {"finished_swept_expires", "finished_default_expires", "transitions_instance", "instances_pkey",
              "instances_reserved"}, 8 * BATCH, 8000),
        Call("signal by id", "signalling/send", signal | {"id": 4007}, {"instances_pkey", "instances_key"}, 4,
             200),
        Call("signal by key", "signalling/send", signal | {"key": f"k{half}"}, {"instances_pkey", "instances_key"},
             4, 200),
        Call("signal by loose key", "signalling/send", signal | {"key": "loose"}, {"instances_pkey", "instances_key"},
             4, 200),
        Call("children of a small spawn", "joining/children", {"parent": half + 101, "spawn": 1}, family, 2, 60),
        Call("descend", "steering/descend", {"parents": encode(list(range(BIG + 1, BIG + BATCH))), "spawn": None},
             family, 1, 600),
        Call("cancel", "steering/cancel", {"ids": encode([id_ for id_, _ in mine[:BATCH]]), "reason": "{}",
             "keep": True}, {"instances_pkey", "signals_pkey"}, 5 * BATCH, 9000),
        Call("retry", "steering/retry", {"id": stock.ended_id(507)}, {"finished_id", "instances_pkey"}, 5, 100),
        Call("watch", "reading/watch", {"id": half}, {"instances_pkey"}, 1, 30),
        Call("replace", "inserting/replace", {"key": f"k{half}", "row": encode([rows[0]]), "notify": True,
             "soon": 5.0}, {"instances_key", "instances_pkey"}, 3, 80),
        Call("ids", "inserting/ids", {"count": BATCH}, set(), 0, 300),
        Call("resolve", "committing/noted", {"worker": ME, "claims": encode(claims)}, {"transitions_instance"}, BATCH,
             1500),
    ]  # fmt: skip


# What the client sends, on sessions that leave the planner more ways.
CLIENT = {
    "inserting/insert",
    "inserting/plain",
    "inserting/one",
    "inserting/one_born",
    "inserting/holders",
    "inserting/replace",
    "inserting/ids",
    "signalling/send",
    "joining/children",
    "steering/descend",
    "steering/cancel",
    "steering/retry",
    "reading/by_id",
    "reading/by_key",
    "reading/watch",
}
