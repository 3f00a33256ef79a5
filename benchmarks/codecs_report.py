"""Table and plot of benchmarks/results/codecs.json; nothing in them is computed from anything else.

python -m benchmarks.codecs_report
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BREAKS = 0.03
"""A codec that costs more of fp32 DiLoCo's bits per byte than this counts as broken at these settings."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One codec over all seeds; penalties are relative to the same seed's run."""

    codec: str
    every: int | None
    seeds: int
    bpb: float
    lowest: float
    highest: float
    against_ddp: float | None
    against_diloco: float | None
    bytes_per_sync: float
    sent_bytes: float
    syncs: int


def lines_of(rows: list[dict[str, Any]]) -> list[Line]:
    """One line per codec, in the order of the rows: DDP and fp32 DiLoCo come first."""
    found = []
    for codec in dict.fromkeys(r["codec"] for r in rows):
        mine = [r for r in rows if r["codec"] == codec]
        bpb = [r["val_bpb"] for r in mine]
        found.append(
            Line(
                codec=codec,
                every=mine[0]["H"],
                seeds=len(mine),
                bpb=statistics.mean(bpb),
                lowest=min(bpb),
                highest=max(bpb),
                against_ddp=_penalty(mine, rows, "DDP"),
                against_diloco=_penalty(mine, rows, "fp32 DiLoCo"),
                bytes_per_sync=statistics.mean(r["bytes_per_parameter_per_sync"] for r in mine),
                sent_bytes=statistics.mean(r["bytes_sent"] for r in mine),
                syncs=mine[0]["syncs"],
            )
        )
    return found


def _penalty(mine: list[dict[str, Any]], rows: list[dict[str, Any]], base: str) -> float | None:
    """Mean over seeds of (bits per byte / the base's with the same seed) - 1; None without a base."""
    bases = {r["seed"]: r["val_bpb"] for r in rows if r["codec"] == base}
    found = [r["val_bpb"] / bases[r["seed"]] - 1 for r in mine if r["seed"] in bases]
    return statistics.mean(found) if found else None


def codecs_table(result: dict[str, Any]) -> str:
    """The Markdown table."""
    rows = result["rows"]
    if not rows:
        return "No run is done yet.\n"
    text = [
        "| codec | H | syncs | seeds | bits per byte, mean | min to max | against DDP | against fp32 DiLoCo "
        "| bytes per parameter and sync | MB sent per island | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines_of(rows):
        shares = ["-" if p is None else f"{p:+.2%}" for p in (line.against_ddp, line.against_diloco)]
        broken = line.against_diloco is not None and line.against_diloco > BREAKS
        text.append(
            f"| {line.codec} | {line.every or '-'} | {line.syncs} | {line.seeds} | {line.bpb:.4f} "
            f"| {line.lowest:.4f} to {line.highest:.4f} | {shares[0]} | {shares[1]} | {line.bytes_per_sync:.4f} "
            f"| {line.sent_bytes / 1e6:,.2f} | {'breaks' if broken else ''} |"
        )
    first = rows[0]
    text.append(
        f"\n{first['parameters']:,} parameters, {first['islands']} islands, {first['steps']} inner steps, "
        f"{first['tokens']:,} tokens; penalties seed by seed; breaks: over {BREAKS:.0%} behind fp32 DiLoCo. "
        f"`{result['command']}`, {result['hardware']['cpu']}, {result['created'][:10]}."
    )
    return "\n".join(text) + "\n"


def write_codecs_table(path: Path) -> Path:
    """RESULTS/codecs.md."""
    target = path.with_suffix(".md")
    target.write_text(codecs_table(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    return target


def write_codecs_plot(path: Path) -> Path:
    """RESULTS/codecs.svg: validation bits per byte against all bytes that an island sent, range over seeds as bars."""
    import plotly.graph_objects as go

    result = json.loads(path.read_text(encoding="utf-8"))
    figure = go.Figure()
    lines = sorted(lines_of(result["rows"]), key=lambda line: line.sent_bytes)
    for number, line in enumerate(lines):
        figure.add_trace(
            go.Scatter(
                x=[line.sent_bytes / 1e6],
                y=[line.bpb],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [line.highest - line.bpb],
                    "arrayminus": [line.bpb - line.lowest],
                },
                mode="markers+text",
                text=[line.codec],
                textposition=("top center", "bottom center")[number % 2],
                name=line.codec,
            )
        )
    figure.update_layout(
        title="Validation loss against bytes, every codec at the same tokens",
        xaxis={"title": "MB sent per island", "type": "log"},
        yaxis={"title": "validation, bits per byte"},
        showlegend=False,
        template="simple_white",
        width=1100,
        height=700,
    )
    target = path.with_suffix(".svg")
    figure.write_image(target)
    return target


def main() -> None:
    """Rewrite table and plot from the committed result."""
    path = Path(__file__).resolve().parent / "results" / "codecs.json"
    print(write_codecs_table(path), write_codecs_plot(path))


if __name__ == "__main__":
    main()
