"""Table and plot of benchmarks/results/headline.json; nothing in them is computed from anything else.

python -m benchmarks.headline_report
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any


def mean_of(rows: list[dict[str, Any]], column: str) -> float | None:
    """Over seeds; None if any is missing."""
    values = [r[column] for r in rows]
    return None if not values or None in values else statistics.mean(values)


def headline_table(result: dict[str, Any]) -> str:
    """The Markdown tables: one per link."""
    rows, text = result["rows"], []
    if not rows:
        return "No cell is done yet.\n"
    for preset, link in dict.fromkeys((r["preset"], r["link"]) for r in rows):
        mine = [r for r in rows if (r["preset"], r["link"]) == (preset, link)]
        text += [
            f"\n**{preset}, {mine[0]['rate_mbit']:g} Mbit/s, {mine[0]['rtt_ms']:g} ms round trip**\n",
            *_one_link(mine),
        ]
    first = rows[0]
    seeds = len({r["seed"] for r in rows})
    sizes = {r["preset"]: r for r in rows}.values()
    told = "; ".join(
        f"{r['preset']}: {r['parameters']:,} parameters, {r['steps']} inner steps, {r['tokens']:,} tokens"
        for r in sizes
    )
    text.append(
        f"\n{first['islands']} islands, seeds: {seeds}. {told}. "
        "Utilisation: seconds of a step that is never synced / of the method's, both in the "
        "same processes; net: without the seconds in which the training thread was ready to run and had no core, on a "
        "machine that other work shared. Time and bytes: steps x what a window of steady steps measured; bytes by "
        "the host's own interface, peak rates over 0.25 s. Validation loss: whole runs without shaping. "
        f"`{result['command']}`, {result['hardware']['cpu']}, {result['created'][:10]}."
    )
    return "\n".join(text).lstrip() + "\n"


def _one_link(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| method | H | bits per byte | MB sent per island | of DDP's bytes | peak Mbit/s | wall-clock, s | speed-up "
        "| utilisation | net speed-up | net utilisation |",
        "|---" * 11 + "|",
    ]
    for method in dict.fromkeys(r["method"] for r in rows):
        mine = [r for r in rows if r["method"] == method]
        bpb, ratio, speedup = (mean_of(mine, c) for c in ("val_bpb", "bytes_ratio_to_ddp", "speedup_over_ddp"))
        sent, wall = (statistics.mean(r[c] for r in mine) for c in ("bytes_sent", "wall_s"))
        peak = statistics.mean(r["peak_mbit"] for r in mine)
        used, net = (statistics.mean(r[c] for r in mine) for c in ("utilisation", "net_utilisation"))
        net_speedup = mean_of(mine, "net_speedup_over_ddp")
        lines.append(
            f"| {method} | {mine[0]['H']} | {'-' if bpb is None else f'{bpb:.4f}'} | {sent / 1e6:,.2f} "
            f"| {'-' if ratio is None else f'1/{ratio:,.4g}'} | {peak:,.3g} | {wall:,.0f} "
            f"| {'-' if speedup is None else f'{speedup:,.1f}x'} | {used:.1%} "
            f"| {'-' if net_speedup is None else f'{net_speedup:,.1f}x'} | {net:.1%} |"
        )
    return lines


def write_headline_table(path: Path) -> Path:
    """RESULTS/headline.md."""
    target = path.with_suffix(".md")
    target.write_text(headline_table(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    return target


def write_headline_plot(path: Path) -> Path:
    """RESULTS/headline.svg: net utilisation against the link's rate (nano), a panel per round trip."""
    from plotly.subplots import make_subplots

    rows = [r for r in json.loads(path.read_text(encoding="utf-8"))["rows"] if r["preset"] == "nano"]
    delays = sorted({r["rtt_ms"] for r in rows})
    titles = [f"{delay:g} ms round trip" for delay in delays]
    figure = make_subplots(rows=1, cols=max(1, len(delays)), subplot_titles=titles, shared_yaxes=True)
    palette = (
        "#4c78a8",
        "#9ecae9",
        "#72b7b2",
        "#b279a2",
        "#e45756",
        "#bab0ac",
        "#f58518",
        "#54a24b",
        "#eeca3b",
        "#222222",
    )
    for number, method in enumerate(dict.fromkeys(r["method"] for r in rows)):
        for column, delay in enumerate(delays, 1):
            mine = [r for r in rows if r["method"] == method and r["rtt_ms"] == delay]
            rates = sorted({r["rate_mbit"] for r in mine})
            used = [statistics.mean(r["net_utilisation"] for r in mine if r["rate_mbit"] == rate) for rate in rates]
            figure.add_scatter(
                x=rates,
                y=used,
                mode="lines+markers",
                name=method,
                legendgroup=method,
                showlegend=column == 1,
                line={"color": palette[number % len(palette)], "dash": "solid" if "lowcomm" in method else "dot"},
                row=1,
                col=column,
            )
    figure.update_xaxes(type="log", title="link between two islands, Mbit/s each way")
    figure.update_yaxes(title="net utilisation", tickformat=".0%", range=[0, 1.05], col=1)
    figure.update_layout(
        template="simple_white", width=1200, height=560, title="Utilisation against bandwidth, two islands"
    )
    target = path.with_suffix(".svg")
    figure.write_image(target)
    return target


def main() -> None:
    """Rewrite table and plot from the committed result."""
    path = Path(__file__).resolve().parent / "results" / "headline.json"
    print(write_headline_table(path), write_headline_plot(path))


if __name__ == "__main__":
    main()
