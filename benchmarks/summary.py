"""The README's one table: loss and bytes of the plain methods, and what they do on a slow link; from other results."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.codecs_report import lines_of

SHOWN = {
    "DDP": "DDP: all gradients, every step",
    "fp32 DiLoCo": "DiLoCo: a sync every 32 steps",
    "int4": "the same in 4 bits",
    "two_bit": "the same in 2 bits",
}
OVERLAPPED = "lowcomm int4 streaming, overlap"


def summary_table(codecs: dict[str, Any], headline: dict[str, Any]) -> str:
    """Rows of results/codecs.json, and a sentence from results/headline.json."""
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
        f"\n{first['parameters']:,} parameters, {first['islands']} islands, {first['tokens']:,} tokens, means: "
        f"`{codecs['command']}`.\n{_slow_link(headline)}: `{headline['command']}`.\n"
        f"{codecs['hardware']['cpu']}, {codecs['created'][:10]}."
    )
    return "\n".join(lines) + "\n"


def _slow_link(headline: dict[str, Any]) -> str:
    rows = [r for r in headline["rows"] if r["preset"] == "nano" and r["rtt_ms"] > 0]
    slowest = min(r["rate_mbit"] for r in rows)

    def mean(method: str, column: str) -> float:
        values = [r[column] for r in rows if r["method"] == method and r["rate_mbit"] == slowest]
        return statistics.mean(v for v in values if v is not None)

    return (
        f"On a shaped link of {slowest:g} Mbit/s, where this model's gradients take as many steps to send as those of "
        f"107B parameters at 1 Gbit/s,\n4 bits with overlap get through the same tokens "
        f"{mean(OVERLAPPED, 'net_speedup_over_ddp'):,.0f} times as fast as DDP, and "
        f"{mean(OVERLAPPED, 'net_speedup_over_full_link'):,.0f} times as fast as a DDP that fills the link"
    )
