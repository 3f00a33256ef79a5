"""The tables of benchmarks/results/gpu.json; nothing in them is computed from anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Rows = Sequence[dict[str, Any]]


def gpu_table(result: dict[str, Any]) -> str:
    """Checks, speed, training, and what was left out."""
    rows: Rows = result["rows"]
    by_part = {part: [r for r in rows if r["part"] == part] for part in ("device", "check", "speed", "train", "failed")}
    text = [_checks(by_part["check"]), *_speed(by_part["speed"]), *_train(by_part["train"])]
    text += [f"Left out: {r['name']} ({r['why']})." for r in by_part["failed"]]
    text += [
        f"{r['name']}, {r['memory_bytes'] / 2**30:.0f} GiB, torch {r['torch']}, triton {r['triton']}."
        for r in by_part["device"]
    ]
    text.append(f"`{result['command']}`, {result['created'][:10]}.")
    return "\n\n".join(text) + "\n"


def _checks(rows: Rows) -> str:
    wrong = [f"{r['op']} ({r['differs']} of {r['cases']})" for r in rows if not r["same"]]
    cases = sum(r["cases"] for r in rows)
    good = f"{len(rows)} Triton ops give the bytes of the eager reference in {cases:,} cases"
    return f"**Other bytes than the reference: {', '.join(wrong)}.**" if wrong else f"{good}." if rows else "No checks."


def _speed(rows: Rows) -> list[str]:
    if not rows:
        return []
    paths = list(dict.fromkeys(r["path"] for r in rows))
    cells = {(r["op"], r["path"]): r for r in rows}
    lines = [f"| op, share of copy | {' | '.join(paths)} | triton, GB/s |", "|" + "---|" * (len(paths) + 2)]
    for op in dict.fromkeys(r["op"] for r in rows):
        shares = " | ".join(f"{cells[op, p]['share_of_copy']:.1%}" if (op, p) in cells else "" for p in paths)
        own = cells.get((op, "triton"))
        lines.append(f"| {op} | {shares} | {'' if own is None else format(own['gb_per_s'], ',.0f')} |")
    return ["\n".join(lines)]


def _train(rows: Rows) -> list[str]:
    if not rows:
        return []
    lines = [
        "| model | method | engine | a step, ms | an encode, ms | a sync, ms | MB sent per sync | peak memory, GiB |",
        "|" + "---|" * 8,
    ]
    for r in rows:
        peak = "-" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**30:.2f}"
        lines.append(
            f"| {r['preset']} | {r['method']} | {r['engine']} | {1e3 * r['step_s']:.1f} | {1e3 * r['encode_s']:.1f} "
            f"| {1e3 * r['sync_s']:.1f} | {r['sent_bytes_per_sync'] / 1e6:,.1f} | {peak} |"
        )
    first = rows[0]
    missing = sorted({name for r in rows for name in r["without"]})
    slower = f" Without {', '.join(missing)}: digests took longer." if missing else ""
    about = f"Two islands on one card, {first['tokens_per_step']:,} tokens a step, bf16 autocast.{slower}"
    return ["\n".join(lines), about]
