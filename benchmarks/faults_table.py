"""The table of benchmarks/faults.py."""

from __future__ import annotations

from typing import Any

HEAD = "| fault | exchange | islands | outcome | exit | noticed | rounds lost | resumes | bits/byte |"


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = [HEAD, "|---|---|---|---|---|---|---|---|---|"]
    for r in result["rows"]:
        noticed = "" if r["noticed_s"] is None else f"{r['noticed_s']:.1f} s"
        resumes = {None: "", True: "yes", False: "no"}[r["resumable"]]
        change = "" if r["final_val_bpb_change"] is None else f"{r['final_val_bpb_change']:+.3f}"
        outcome = r["outcome"] + (f" without {', '.join(r['lost'])}" if r["lost"] else "")
        flags = f" (`{r['flags']}`)" if r["flags"] else ""
        lines.append(
            f"| {r['fault']}{flags} | {r['exchange']} | {r['islands']} | {outcome} | {r['exit_code']} | {noticed} "
            f"| {r['rounds_lost']} | {resumes} | {change} |"
        )
    return "\n".join(lines) + "\n"
