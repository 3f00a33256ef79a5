"""Table and picture of benchmarks/results/robust.json.

python -m benchmarks.robust_report
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FAILS = "the run ends"
Rows = Sequence[dict[str, Any]]


def robust_table(result: dict[str, Any], wanted: int) -> str:
    """Markdown: for each split and number of attackers, rules by attacks: loss over the clean mean."""
    rows = result["rows"]
    if not rows:
        return "No run is done yet.\n"
    parts: list[str] = []
    for split in dict.fromkeys(r["split"] for r in rows):
        for attackers in sorted({r["attackers"] for r in rows if r["split"] == split and r["attackers"]}, reverse=True):
            parts.append(_part(rows, split, attackers))
    seeds = sorted({r["seed"] for r in rows})
    parts.append(
        f"Validation bits per byte over those of the mean without attackers, same split and seed, mean over the seeds "
        f"{', '.join(map(str, seeds))} that are done. 0.12M parameters, 8 islands, {rows[0]['rounds']} rounds; every "
        f"rule is set for two faulty islands. {len(rows)} of {wanted} runs are done"
        f"{'' if len(rows) == wanted else '; a dash is one that is not'}. `{result['command']}`, "
        f"{result['hardware']['cpu']}, {result['created'][:10]}."
    )
    return "\n\n".join(parts) + "\n"


def _part(rows: Rows, split: str, attackers: int) -> str:
    mine = [r for r in rows if r["split"] == split and r["attackers"] == attackers]
    attacks = list(dict.fromkeys(r["attack"] for r in mine if r["attack"] != "left out"))
    clean = [r for r in rows if r["split"] == split and r["attackers"] == 0]
    rules = list(dict.fromkeys(r["rule"] for r in (*clean, *mine) if r["rule"] != "honest mean"))
    honest = _mean([r for r in mine if r["rule"] == "honest mean"])
    lines = [
        f"**{split}, {attackers} of 8 attack.** The mean of the honest alone: {honest}.",
        "",
        f"| rule | no attacker | {' | '.join(attacks)} |",
        f"|---|---|{'---|' * len(attacks)}",
    ]
    for rule in rules:
        found = [_mean([r for r in clean if r["rule"] == rule])]
        found += [_mean([r for r in mine if r["rule"] == rule and r["attack"] == a]) for a in attacks]
        lines.append(f"| {rule} | {' | '.join(found)} |")
    return "\n".join(lines)


def _mean(rows: Rows) -> str:
    if any(r["failure"] is not None for r in rows):
        return FAILS
    known = [r["over_clean"] for r in rows if r["over_clean"] is not None]
    return f"{statistics.mean(known):+.1%}" if known else "-"


def write_robust_table(path: Path, wanted: int) -> Path:
    """RESULTS/robust.md."""
    target = path.with_suffix(".md")
    target.write_text(robust_table(json.loads(path.read_text(encoding="utf-8")), wanted), encoding="utf-8")
    return target


def write_robust_picture(path: Path) -> Path:
    """RESULTS/robust.svg: rules against attacks, two of eight, a panel per split; loss over the clean mean."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    rows = [r for r in json.loads(path.read_text(encoding="utf-8"))["rows"] if r["rule"] != "honest mean"]
    splits = list(dict.fromkeys(r["split"] for r in rows))
    rules = list(dict.fromkeys(r["rule"] for r in rows))[::-1]
    attacks = ["none", *dict.fromkeys(r["attack"] for r in rows if r["attackers"] == 2)]
    figure = make_subplots(cols=max(1, len(splits)), rows=1, subplot_titles=splits, shared_yaxes=True)
    for column, split in enumerate(splits, start=1):
        mine = [r for r in rows if r["split"] == split and r["attackers"] in (0, 2)]
        cells = [[_cell(mine, rule, attack) for attack in attacks] for rule in rules]
        figure.add_trace(
            go.Heatmap(
                x=attacks,
                y=rules,
                z=[[z for z, _ in line] for line in cells],
                text=[[t for _, t in line] for line in cells],
                texttemplate="%{text}",
                zmin=math.log10(0.001),
                zmax=math.log10(1.0),
                colorscale="RdYlGn_r",
                showscale=False,
            ),
            row=1,
            col=column,
        )
    figure.update_layout(
        title="Loss over the mean without attackers; two of eight islands attack",
        template="simple_white",
        width=1500,
        height=560,
    )
    target = path.with_suffix(".svg")
    figure.write_image(target)
    return target


def _cell(rows: Rows, rule: str, attack: str) -> tuple[float | None, str]:
    """Colour (log10 of the loss over the clean mean) and text."""
    found = [r for r in rows if r["rule"] == rule and (r["attack"] or "none") == attack]
    said = _mean(found)
    if said == FAILS:
        return 0.0, "ends"
    known = [r["over_clean"] for r in found if r["over_clean"] is not None]
    return (math.log10(max(0.001, statistics.mean(known))), said) if known else (None, "")


def main() -> None:
    """Rewrite the picture from the committed result."""
    print(write_robust_picture(Path(__file__).resolve().parent / "results" / "robust.json"))


if __name__ == "__main__":
    main()
