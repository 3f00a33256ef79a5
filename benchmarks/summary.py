"""The README's one table: loss and bytes of the plain methods, and what they do on a slow link; from other results."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.codecs_report import lines_of
from benchmarks.time_to_loss_table import SEEDS

SHOWN = {
    "DDP": "DDP: all gradients, every step",
    "fp32 DiLoCo": "DiLoCo: a sync every 32 steps",
    "int4": "the same in 4 bits",
    "two_bit": "the same in 2 bits",
}
OVERLAPPED = "lowcomm int4 streaming, overlap"


def summary_table(codecs: dict[str, Any], time_to_loss: dict[str, Any]) -> str:
    """Rows of results/codecs.json, and a sentence from results/time_to_loss.json."""
    lines = [
        "| method | bits per byte | against DDP | MB sent per island | of DDP's bytes |",
        "|---|---|---|---|---|",
    ]
    found = {line.codec: line for line in lines_of(codecs["rows"])}
    for codec, name in SHOWN.items():
        line = found[codec]
        seeds = "" if line.seeds == found["DDP"].seeds else f" ({line.seeds} of {found['DDP'].seeds} seeds)"
        share = found["DDP"].sent_bytes / line.sent_bytes
        penalty = 0.0 if line.against_ddp is None else line.against_ddp
        lines.append(
            f"| {name}{seeds} | {line.bpb:.4f} | {penalty:+.2%} | {line.sent_bytes / 1e6:,.1f} | 1/{share:,.0f} |"
        )
    first = codecs["rows"][0]
    lines.append(
        f"\n{first['parameters']:,} parameters, {first['islands']} islands, {first['tokens']:,} tokens, means, "
        "each against DDP with the same seeds: "
        f"`{codecs['command']}`.\n{_slow_link(time_to_loss['rows'])}: `{time_to_loss['command']}`.\n"
        f"{codecs['hardware']['cpu']}, {codecs['created'][:10]}."
    )
    return "\n".join(lines) + "\n"


def _slow_link(rows: Sequence[dict[str, Any]]) -> str:
    """Time and bytes to DDP's loss on the slowest link, means over seeds; how many these are where fewer than three."""
    mine = [r for r in rows if r["preset"] == "nano" and r["target_share"] == 1.0 and r["method"] == OVERLAPPED]
    slowest = min(r["rate_mbit"] for r in mine)
    mine = [r for r in mine if r["rate_mbit"] == slowest]
    seeds = len({r["seed"] for r in mine})
    told = "" if seeds >= SEEDS else f" ({seeds} seed{'s' if seeds != 1 else ''})"

    def mean(column: str) -> float:
        return statistics.mean(r[column] for r in mine)

    return (
        f"To DDP's loss, not only through its tokens: on a shaped link of {slowest:g} Mbit/s, where this model's "
        f"gradients take as many steps to\nsend as those of 107B parameters at 1 Gbit/s, two islands in 4 bits with "
        f"overlap reach it in 1/{mean('speedup_over_ddp'):,.0f} of DDP's time\n"
        f"(1/{mean('speedup_over_full_link'):,.0f} of that of a DDP that fills the link), with "
        f"1/{mean('bytes_ratio_to_ddp'):,.0f} of its bytes{told}"
    )
