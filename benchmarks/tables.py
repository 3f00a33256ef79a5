"""Markdown tables and plots from result files; nothing in them is computed from anything else."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any


def write_quality_table(path: Path) -> Path:
    """RESULTS/quality_PRESET.md: mean and spread over seeds, penalty against DDP seed by seed, counted bytes."""
    result = json.loads(path.read_text(encoding="utf-8"))
    target = path.with_suffix(".md")
    target.write_text(quality_table(result), encoding="utf-8")
    return target


def quality_table(result: dict[str, Any]) -> str:
    """The table, DDP first. Penalty: mean over seeds of (bits per byte / DDP's with the same seed) - 1."""
    rows = result["rows"]
    base = {r["seed"]: r for r in rows if r["method"] == "DDP"}
    lines = [
        "| method | rounds | bits per byte, mean | min to max | against DDP | MB sent per island | of DDP's bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    ordered = sorted(rows, key=lambda r: (r["H"] is not None, "warm-up" in r["method"], r["H"] or 0))
    for method in dict.fromkeys(r["method"] for r in ordered):
        mine = [r for r in rows if r["method"] == method]
        bpb = [r["val_bpb"] for r in mine]
        penalty = statistics.mean(r["val_bpb"] / base[r["seed"]]["val_bpb"] - 1 for r in mine)
        sent = statistics.mean(r["bytes_sent"] for r in mine)
        share = base[mine[0]["seed"]]["bytes_sent"] / sent
        seeds = "" if len(mine) == len(base) else f", {len(mine)} of {len(base)} seeds"
        spread = f"{statistics.mean(bpb):.4f} | {min(bpb):.4f} to {max(bpb):.4f} "
        lines.append(
            f"| {method}{seeds} | {mine[0]['rounds'] or '-'} | {spread}"
            f"| {penalty:+.2%} | {sent / 1e6:,.1f} | 1/{share:.1f} |"
        )
    first = rows[0]
    lines.append(
        f"\n{first['parameters']:,} parameters, {first['islands']} islands, {first['steps']} inner steps, "
        f"{first['tokens']:,} tokens, seeds: {len(base)}. `{result['command']}`, {result['hardware']['cpu']}, "
        f"{result['created'][:10]}."
    )
    return "\n".join(lines) + "\n"


def streams_table(result: dict[str, Any]) -> str:
    """Seconds of one sync per way of sending, beside stock gloo."""
    rows = result["rows"]
    lines = [
        "| 100 MB fp32 between two hosts | seconds, median | fastest to slowest | against all_reduce |",
        "|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['way']} | {r['seconds_s']:.2f} | {r['fastest_s']:.2f} to {r['slowest_s']:.2f} "
            f"| {r['speedup_over_all_reduce']:.1f}x |"
        )
    first = rows[0]
    lines.append(
        f"\n{first['rate_mbit']:g} Mbit/s, {first['rtt_ms']:g} ms round trip, {first['repeats']} repeats, on one "
        f"machine's shaped network. `{result['command']}`, {result['hardware']['cpu']}, {result['created'][:10]}."
    )
    return "\n".join(lines) + "\n"


def islands_table(result: dict[str, Any]) -> str:
    """What a sync adds to the memory of an island's rank, and what an idle one adds to a step."""
    rows = result["rows"]
    memory = [r for r in rows if r["measured"] == "memory"]
    idle = {r["kind"]: r for r in rows if r["measured"] == "idle step"}
    lines = [
        "| island | codec | rank's shard, MB | kept between syncs | a sync adds | step of an idle one |",
        "|---|---|---|---|---|---|",
    ]
    for r in memory:
        step = idle.get(r["kind"]) if r["codec"] == "fp32" else None
        told = "" if step is None else f"{step['idle_ratio_of_medians'] - 1:+.1%} of {step['step_ms']:.0f} ms"
        lines.append(
            f"| {r['kind']} | {r['codec']} | {r['shard_bytes'] / 1e6:.1f} | {r['state_of_shard']:.2f} shards "
            f"| {r['sync_of_shard']:.2f} shards | {told} |"
        )
    steps = "".join(f" step: {preset} preset." for preset in dict.fromkeys(r["preset"] for r in idle.values()))
    lines.append(
        f"\n2 islands x 2 ranks; memory: {memory[0]['preset']} preset, resident bytes of the rank that needs most;"
        f"{steps} `{result['command']}`, {result['hardware']['cpu']}, "
        f"{result['created'][:10]}."
    )
    return "\n".join(lines) + "\n"
