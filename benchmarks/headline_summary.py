"""The README's part of benchmarks/results/headline.json: one line per method, the links with a round trip of 50 ms."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.peers.session import STEADY


def headline_summary(result: dict[str, Any]) -> str:
    """Utilisation on every link, time and bytes against DDP on the slowest; means over seeds."""
    every = [
        {**r, "net_utilisation": r["net_utilisation"] if r["pace_change"] <= STEADY else None}
        for r in result["rows"]
        if r["rtt_ms"] > 0
    ]
    rows = [r for r in every if r["preset"] == "nano"]
    rates = sorted({r["rate_mbit"] for r in rows}, reverse=True)
    used = " | ".join(f"utilisation at {rate:g} Mbit/s" for rate in rates)
    lines = [
        f"| method | H | {used} | speed-up over DDP at {rates[-1]:g} Mbit/s | over a DDP that fills the link "
        "| of DDP's bytes |",
        "|---" * (len(rates) + 5) + "|",
    ]
    for method in dict.fromkeys(r["method"] for r in rows):
        mine = [r for r in rows if r["method"] == method]
        shares = [_mean(mine, rate, "net_utilisation", "{:.1%}") for rate in rates]
        slowest = _mean(mine, rates[-1], "net_speedup_over_ddp", "{:,.0f}x")
        ideal = _mean(mine, rates[-1], "net_speedup_over_full_link", "{:,.0f}x")
        ratio = _mean(mine, rates[-1], "bytes_ratio_to_ddp", "1/{:,.0f}")
        lines.append(f"| {method} | {mine[0]['H']} | {' | '.join(shares)} | {slowest} | {ideal} | {ratio} |")
    lines += _other_models(every)
    first = rows[0]
    lines.append(
        f"\nThe first table: nano, {first['islands']} islands on one machine's shaped network, {first['rtt_ms']:g} ms "
        "round trip; utilisation against steps that are never synced in the same processes, without the seconds in "
        "which a thread that was ready to run had no core; over 100%: noise; -: not run, or the machine changed its "
        f"pace within. `{result['command']}`, {result['hardware']['cpu']}, {result['created'][:10]}."
    )
    return "\n".join(lines) + "\n"


def _other_models(rows: list[dict[str, Any]]) -> list[str]:
    """The larger models on their slowest link, as far as they were run."""
    mine = [r for r in rows if r["preset"] != "nano" and r["link"].startswith("slow")]
    if not mine:
        return []
    lines = [
        "\nLarger models, each on its slowest link:\n",
        "| model | parameters | method | utilisation | speed-up over DDP | over a DDP that fills the link |",
        "|---" * 6 + "|",
    ]
    for r in mine:
        about = f"{r['preset']} at {r['rate_mbit']:g} Mbit/s | {r['parameters']:,} | {r['method']}"
        gain, ideal = r["net_speedup_over_ddp"], r["net_speedup_over_full_link"]
        used = _mean([r], r["rate_mbit"], "net_utilisation", "{:.1%}")
        lines.append(f"| {about} | {used} | {gain:,.0f}x | {ideal:,.0f}x |")
    return lines


def _mean(rows: list[dict[str, Any]], rate: float, column: str, form: str) -> str:
    values = [r[column] for r in rows if r["rate_mbit"] == rate and r[column] is not None]
    return form.format(statistics.mean(values)) if values else "-"
