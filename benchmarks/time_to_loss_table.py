"""Tables of benchmarks/results/time_to_loss.json; nothing in them is computed from anything else.

python -m benchmarks.time_to_loss_table
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.time_to_loss_rows import NOT_REACHED, NOT_RUN_ON

SEEDS = 3
"""That a number on the front page has; others are marked."""
Row = Mapping[str, Any]


def mean_of(rows: Sequence[Row], column: str) -> float | None:
    """Over seeds; None if any is missing."""
    values = [r.get(column) for r in rows]
    known = [v for v in values if v is not None]
    return statistics.mean(known) if values and len(known) == len(values) else None


def shown(rows: Sequence[Row], column: str, form: str) -> str:
    """The mean, or why there is none."""
    value = mean_of(rows, column)
    if value is not None:
        return form.format(value)
    missing = {r["wall_s_from"] for r in rows if r["steps_to_target"] is None}
    return next((why for why in (NOT_RUN_ON, NOT_REACHED) if why in missing), "-")


def time_to_loss_table(result: dict[str, Any]) -> str:
    """The Markdown tables: one per model and link."""
    rows: list[dict[str, Any]] = result["rows"]
    if not rows:
        return "No run is done yet.\n"
    text: list[str] = []
    for preset, link in dict.fromkeys((r["preset"], r["link"]) for r in rows):
        mine = [r for r in rows if (r["preset"], r["link"]) == (preset, link)]
        text += [
            f"\n**{preset}, {mine[0]['rate_mbit']:g} Mbit/s, {mine[0]['rtt_ms']:g} ms round trip**\n",
            *_one_link(mine),
        ]
    text.append(_foot(result))
    return "\n".join(text).lstrip() + "\n"


def _one_link(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| method | bits per byte at DDP's tokens | of (alone - DDP) recovered | steps to DDP's loss at 25 % | 50 % "
        "| 100 % | seconds to it | speed-up over DDP | over DDP with its inner optimizer | over a DDP that fills the "
        "link | of DDP's bytes |",
        "|---" * 11 + "|",
    ]
    for method in dict.fromkeys(r["method"] for r in rows):
        lines.append(_line(method, [r for r in rows if r["method"] == method], rows))
    return lines


def _line(method: str, mine: Sequence[Row], rows: Sequence[Row]) -> str:
    last = [r for r in mine if r["target_share"] == 1.0]
    steps = [shown([r for r in mine if r["target_share"] == s], "steps_to_target", "{:,.0f}") for s in (0.25, 0.5, 1.0)]
    ratios = [
        shown(last, column, "{:,.1f}x")
        for column in ("speedup_over_ddp", "speedup_over_ddp_same_inner", "speedup_over_full_link")
    ]
    equal, share = mean_of(last, "bpb_at_equal_tokens"), mean_of(last, "recovered")
    cells = [
        f"{method}{marked(last, rows)}",
        "-" if equal is None else f"{equal:.4f}",
        "-" if share is None else f"{share:.0%}",
        *steps,
        shown(last, "wall_s_to_target", "{:,.0f}"),
        *ratios,
        "0" if mean_of(last, "bytes_to_target") == 0 else shown(last, "bytes_ratio_to_ddp", "1/{:,.0f}"),
    ]
    return f"| {' | '.join(cells)} |"


def marked(mine: Sequence[Row], rows: Sequence[Row]) -> str:
    """How many seeds it has, where these are fewer than others have or than a number on the front page needs."""
    own, most = len({r["seed"] for r in mine}), len({r["seed"] for r in rows})
    return "" if own == most and own >= SEEDS else f" ({own} seed{'s' if own != 1 else ''})"


def _foot(result: dict[str, Any]) -> str:
    rows = result["rows"]
    return (
        f"\n{rows[0]['islands']} islands, one for the row alone, which takes half of DDP's tokens in a step. Steps: "
        "the first evaluation (every 128) at or below DDP's loss with the same seed; the learning rate falls over the "
        "run, whose length is chosen from 1, 1.25, 1.5, 2 and 3 times DDP's; not reached: in none of "
        "them; not run on: longer ones were not made. Seconds: "
        "steps and syncs x what headline.json measured on the shaped link; -: not timed there. The last five columns "
        f"are for 100 %. `{result['command']}`, {result['hardware']['cpu']}, {result['created'][:10]}."
    )


def time_to_loss_summary(result: dict[str, Any]) -> str:
    """The front page's table: nano on its slowest link."""
    rows = [r for r in result["rows"] if r["preset"] == "nano"]
    slowest = min(r["rate_mbit"] for r in rows)
    mine = [r for r in rows if r["rate_mbit"] == slowest and r["target_share"] == 1.0]
    lines = [
        "| method | bits per byte at DDP's tokens | steps to DDP's loss | time to it | of DDP's bytes |",
        "|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(r["method"] for r in mine):
        own = [r for r in mine if r["method"] == method]
        equal = mean_of(own, "bpb_at_equal_tokens")
        speed = shown(own, "speedup_over_ddp", "1/{:,.0f} of DDP's")
        sent = "0" if mean_of(own, "bytes_to_target") == 0 else shown(own, "bytes_ratio_to_ddp", "1/{:,.0f}")
        lines.append(
            f"| {method}{marked(own, mine)} | {'-' if equal is None else f'{equal:.4f}'} "
            f"| {shown(own, 'steps_to_target', '{:,.0f}')} | {speed} | {sent} |"
        )
    lines.append(
        f"\nnano, {slowest:g} Mbit/s and {mine[0]['rtt_ms']:g} ms between two islands, means of "
        f"{len({r['seed'] for r in mine})} seeds: `{result['command']}`,\n{result['hardware']['cpu']}, "
        f"{result['created'][:10]}."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Rewrite the table from the committed result."""
    path = RESULTS / "time_to_loss.json"
    text = time_to_loss_table(json.loads(path.read_text(encoding="utf-8")))
    print(path.with_suffix(".md").write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
