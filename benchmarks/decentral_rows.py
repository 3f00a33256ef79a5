"""Rows of benchmarks/decentral.py: what a run left, and the time that the planner's model gives it on shaped links."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.decentral_methods import EVERY, SLOWER, STEPS
from lowcomm.config import SyncConfig
from lowcomm.exchange.gossip import Gossip
from lowcomm.exchange.modest import Modest
from lowcomm.mixing import Overlapped
from lowcomm.plan.codecs import FP32
from lowcomm.plan.decentral import GossipRound, finish_s, gossip_s
from lowcomm.plan.runtime import Job, Link, Settings, exchange_s
from lowcomm.schedule import EveryStep, LateMerge
from lowcomm.topology import Multigraph

LINK = Link(rate_bytes_per_s=100e6 / 8, rtt_s=0.05)
"""100 Mbit/s and 50 ms between any two islands, each of which has one such line."""
SPEEDS: dict[str, tuple[int, ...]] = {"equal": (1,), "1, 1, 2, 4 times": SLOWER}


def run_facts(directory: Path) -> dict[str, Any]:
    """What a run's summary and metrics say, without any time."""
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    syncs = [e for e in events if e["event"] == "sync"]
    evals = [e for e in events if e["event"] == "eval"]
    return {
        "val_bpb": summary["val_bpb"],
        "curve": [(e["step"], e["val_bpb"]) for e in evals],
        "bytes_sent": summary["bytes_sent"],
        "parameters": summary["parameters"],
        "peak_bytes": max((e["exchanged_bytes"] for e in syncs), default=None),
        "consensus_distance": summary.get("consensus_distance"),
        "components": min((e["components"] for e in syncs if e["components"] is not None), default=None),
        "spectral_gap": next((e["spectral_gap"] for e in syncs if e["spectral_gap"] is not None), None),
    }


def timed(facts: dict[str, Any], sync: SyncConfig, islands: int, speeds: str, step_s: float) -> dict[str, Any]:
    """The columns that follow from step times: wall_s, peak_bytes_per_s, staleness_mean.

    step_s: of one inner step of a fast island. peak_bytes: the most that one island sends in a round (DDP: a step).
    """
    slower = [SPEEDS[speeds][k % len(SPEEDS[speeds])] for k in range(islands)]
    parameters = facts["parameters"]
    job = Job(parameters=parameters, islands=islands, step_s=step_s, steps=STEPS)
    steps, rounds = (1, STEPS) if isinstance(sync.schedule, EveryStep) else (EVERY, STEPS // EVERY)
    compute = [s * step_s * steps for s in slower]
    choice = sync.exchange
    peak, staleness, overlapped = facts["peak_bytes"], 0.0, False
    if isinstance(choice, Gossip):
        overlapped = isinstance(choice.rule, Overlapped)
        moved_s = choice.steps * gossip_s(
            job, LINK, GossipRound(degree=1, message_bytes=max(1, peak // choice.steps), overlapped=overlapped)
        )
        wall_s = _gossip_wall_s(choice, sync, rounds, compute, moved_s)
        staleness = _staleness(choice, islands)
    elif isinstance(choice, Modest):
        moved_s = 2 * gossip_s(job, LINK, GossipRound(degree=1, message_bytes=max(1, peak)))
        wall_s = rounds * (max(compute) + moved_s)  # a sample has slow islands as often as not
    else:
        settings = Settings(every=steps, codec=FP32)
        moved_s = exchange_s(job, LINK, settings, parameters)
        if steps == 1:  # gradients are averaged without a roll call and digests, which go around a ring
            moved_s -= 2 * (islands - 1) * LINK.rtt_s
        peak = peak or round(facts["bytes_sent"] / STEPS)
        wall_s = finish_s(rounds, compute, moved_s, None)
    window_s = max(moved_s, min(compute)) if overlapped else moved_s
    return {
        "wall_s": wall_s,
        "peak_bytes": peak,
        "peak_bytes_per_s": peak / window_s,
        "staleness_mean": staleness,
    }


def _gossip_wall_s(choice: Gossip, sync: SyncConfig, rounds: int, compute: Sequence[float], moved_s: float) -> float:
    islands = len(compute)
    first = rounds - sync.schedule.merges if isinstance(sync.schedule, LateMerge) else 0

    def neighbours(index: int, island: int) -> Sequence[int]:
        near: set[int] = set()
        at = index - first  # exchanges have numbers, rounds without one have none
        for step in range(at * choice.steps, (at + 1) * choice.steps) if at >= 0 else ():
            near |= set(choice.topology.neighbours(step, island, islands, 0))
        return sorted(near)

    return finish_s(rounds, compute, moved_s, neighbours, isinstance(choice.rule, Overlapped))


def _staleness(choice: Gossip, islands: int) -> float:
    """Rounds by which what an island mixes in is older than its own weights, on average over its edges."""
    if isinstance(choice.rule, Overlapped):
        return 1.0
    if not isinstance(choice.topology, Multigraph):
        return 0.0
    graph = choice.topology
    edges = [(k, j) for k in range(islands) for j in graph.overlay.neighbours(0, k, islands, 0)]
    return sum((graph.period(k, j) - 1) / 2 for k, j in edges) / len(edges)
