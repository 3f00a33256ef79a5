"""Table and pictures of benchmarks/results/decentral.json.

python -m benchmarks.decentral_report
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[dict[str, Any]]
UNEQUAL = "1, 1, 2, 4 times"


def decentral_table(result: dict[str, Any], wanted: int) -> str:
    """Markdown: a part for each number of islands."""
    runs = [r for r in result["rows"] if "val_bpb" in r]
    scale = next((r for r in result["rows"] if r["method"] == "256 nodes"), None)
    if not runs:
        return "No run is done yet.\n"
    parts = [_part(runs, n) for n in sorted({r["islands"] for r in runs})]
    seeds = sorted({r["seed"] for r in runs})
    done = len(runs) // 2
    parts.append(
        "Bits per byte of the global weights after 640 inner steps per island on equal tokens (0.12M parameters, "
        "H = 16), mean and, from two seeds on, largest distance from it, over the seeds "
        f"{', '.join(map(str, seeds))}. Peak: the most that one island sends in a round (DDP: a step). "
        "Islands that MoDeST does not sample, and lost ones, rest: fewer tokens. Time: the "
        f"planner's model of 100 Mbit/s and 50 ms, {1000 * runs[0]['step_s']:.1f} ms per step of a fast island, for "
        f"islands of equal speed and for islands 1, 1, 2, 4 times slower. {done} of "
        f"{wanted} runs are done. `{result['command']}`, {result['hardware']['cpu']}, "
        f"{result['created'][:10]}."
    )
    if scale is not None:
        parts.append(
            f"{scale['nodes']} simulated nodes under gossip take {scale['ratio']:.2f} times as long as their own "
            f"forward and backward passes (of it the exchanges: {scale['exchange_s'] / scale['whole_s']:.1%})."
        )
    return "\n\n".join(parts) + "\n"


def _part(rows: Rows, islands: int) -> str:
    mine = [r for r in rows if r["islands"] == islands]
    base = _of(mine, "DiLoCo", "all")
    lines = [
        f"**{islands} islands**",
        "",
        "| method | topology | bits per byte | over DiLoCo | peak, KB | of DiLoCo's | time, equal, s | "
        "time, unequal, s | distance |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, topology in dict.fromkeys((r["method"], r["topology"]) for r in mine):
        own = _of(mine, method, topology)
        bpb = [r["val_bpb"] for r in own if r["speeds"] == "equal"]
        mean = statistics.mean(bpb)
        spread = f" ±{max(abs(x - mean) for x in bpb):.3f}" if len(bpb) > 1 else ""
        peak = statistics.mean(r["peak_bytes"] for r in own)
        over, share = "-", "-"
        if base:
            shared = {r["seed"] for r in own}
            against = [r["val_bpb"] for r in base if r["seed"] in shared]
            over = f"{mean / statistics.mean(against) - 1:+.1%}" if against else "-"
            share = f"{peak / statistics.mean(r['peak_bytes'] for r in base):.2f}"
        equal, unequal = (_mean([r["wall_s"] for r in own if r["speeds"] == s]) for s in ("equal", UNEQUAL))
        apart = _mean([r["consensus_distance"] for r in own if r["consensus_distance"] is not None], ".3g")
        cells = [method, topology, f"{mean:.3f}{spread}", over, f"{peak / 1000:.0f}", share, equal, unequal, apart]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _of(rows: Rows, method: str, topology: str) -> list[dict[str, Any]]:
    return [r for r in rows if (r["method"], r["topology"]) == (method, topology)]


def _mean(values: Sequence[float], form: str = ".0f") -> str:
    return format(statistics.mean(values), form) if values else "-"


def write_decentral_table(path: Path, wanted: int) -> Path:
    """RESULTS/decentral.md."""
    target = path.with_suffix(".md")
    target.write_text(decentral_table(json.loads(path.read_text(encoding="utf-8")), wanted), encoding="utf-8")
    return target


def write_decentral_pictures(path: Path) -> list[Path]:
    """RESULTS/decentral_time.svg and decentral_peak.svg: loss against time, and against peak bytes."""
    rows = [r for r in json.loads(path.read_text(encoding="utf-8"))["rows"] if r.get("speeds") == UNEQUAL]
    made: list[Path] = []
    for name, key, title in (
        ("time", "wall_s", "seconds on 100 Mbit/s and 50 ms, islands 1, 1, 2, 4 times slower (model)"),
        ("peak", "peak_bytes", "most bytes that one island sends in a round"),
    ):
        made.append(_picture(rows, path.with_name(f"decentral_{name}.svg"), key, title))
    return made


def _picture(rows: Rows, target: Path, key: str, title: str) -> Path:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    islands = sorted({r["islands"] for r in rows}) or [8]
    figure = make_subplots(cols=len(islands), rows=1, subplot_titles=[f"{n} islands" for n in islands])
    for column, n in enumerate(islands, start=1):
        mine = [r for r in rows if r["islands"] == n]
        names = list(dict.fromkeys((r["method"], r["topology"]) for r in mine))
        own = {name: _of(mine, *name) for name in names}
        figure.add_trace(
            go.Scatter(
                x=[statistics.mean(r[key] for r in own[name]) for name in names],
                y=[statistics.mean(r["val_bpb"] for r in own[name]) for name in names],
                text=[name[0] if name[1] == "all" else f"{name[0]} ({name[1]})" for name in names],
                mode="markers+text",
                textposition="middle right",
                textfont={"size": 9},
                marker={"size": 8, "color": ["#c0392b" if name[1] == "all" else "#2c6fbb" for name in names]},
                showlegend=False,
            ),
            row=1,
            col=column,
        )
    figure.update_xaxes(type="log", title_text=title)
    figure.update_yaxes(title_text="validation bits per byte")
    figure.update_layout(template="simple_white", width=820 * len(islands), height=640)
    figure.write_image(target)
    return target


def main() -> None:
    """Rewrite the pictures from the committed result."""
    print(*write_decentral_pictures(Path(__file__).resolve().parent / "results" / "decentral.json"))


if __name__ == "__main__":
    main()
