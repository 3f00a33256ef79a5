"""From measured cells to the rows of benchmarks/results/headline.json."""

from __future__ import annotations

import json
import statistics
from operator import sub
from pathlib import Path
from typing import Any

from benchmarks.headline_methods import BASE, METHODS, NANO, Line, Method, Size
from benchmarks.headline_recipes import ISLANDS
from benchmarks.peers.session import pace_change

TOKENS_PER_STEP = 8 * 64
"""Of one island."""


def cell_of(ranks: list[dict[str, Any]], size: Size, rate_mbit: float) -> dict[str, Any]:
    """What the islands measured in one window, brought to a whole run.

    Medians over the window's rounds (DDP: steps), of the slower island; bytes are means over the islands. Plain steps:
    the mean of before and after. `net_` values are without the seconds in which the training thread was ready to run
    and had no core: what other work on the machine cost, but also what the method's own threads did.
    `net_speedup_over_full_link` is against a DDP that would fill the link at every moment and wait for nothing else:
    4 bytes per parameter at `rate_mbit`, and a plain step.
    """
    window = ranks[0]["steps"]
    plain_s = statistics.mean(ranks[0]["plain_step_s"])
    step_s = max(statistics.median(r["unit_step_s"]) for r in ranks)
    net_s = max(statistics.median(map(sub, r["unit_step_s"], r["unit_wait_s"])) for r in ranks)
    plain_net_s = statistics.mean(ranks[0]["plain_net_s"])
    scale = size.steps / window / len(ranks)
    own = [r["own_sent_bytes"] for r in ranks]
    return {
        "window_steps": window,
        "slowest_over_median": max(max(r["unit_step_s"]) / statistics.median(r["unit_step_s"]) for r in ranks),
        "step_s": step_s,
        "plain_step_s": plain_s,
        "cpu_wait_share": max(sum(r["unit_wait_s"]) / sum(r["unit_step_s"]) for r in ranks),
        "net_step_s": net_s,
        "net_plain_step_s": plain_net_s,
        "pace_change": pace_change(ranks[0]),
        "net_utilisation": plain_net_s / net_s,
        "utilisation": plain_s / step_s,
        "net_speedup_over_full_link": (32 * size.parameters / (rate_mbit * 1e6) + plain_net_s) / net_s,
        "wall_s": size.steps * step_s,
        "wall_s_from": "steps x measured s/step",
        "bytes_sent": round(scale * sum(r["sent_bytes"] for r in ranks)),
        "bytes_received": round(scale * sum(r["received_bytes"] for r in ranks)),
        "peak_mbit": max(r["peak_sent_bytes_per_s"] for r in ranks) * 8 / 1e6,
        "bytes_from": "interface counters in the window x steps / window",
        "own_bytes_sent": None if None in own else round(scale * sum(own)),
    }


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with speedup_over_ddp (DDP's time / its own) and bytes_ratio_to_ddp (DDP's bytes / its own).

    DDP is stock torch's on the same link with the same seed; without it both are None.
    """
    base = {(r["link"], r["seed"]): r for r in rows if r["method"] == BASE}
    made = []
    for row in rows:
        ddp = base.get((row["link"], row["seed"]))
        speedup = None if ddp is None else ddp["step_s"] / row["step_s"]
        net = None if ddp is None else ddp["net_step_s"] / row["net_step_s"]
        ratio = None if ddp is None else ddp["bytes_sent"] / row["bytes_sent"]
        made.append({**row, "speedup_over_ddp": speedup, "net_speedup_over_ddp": net, "bytes_ratio_to_ddp": ratio})
    return made


def rows_of(work_dir: Path, seeds: int, size: Size = NANO) -> list[dict[str, Any]]:
    """All cells that are done, method by method."""
    found = []
    for seed in range(seeds):
        for line in size.lines:
            for method in METHODS:
                where = work_dir / f"{method.key}-seed{seed}"
                ranks = [_read(where / f"{line.name}.rank{k}.json") for k in range(ISLANDS)]
                done = [r for r in ranks if r is not None]
                if len(done) == ISLANDS:
                    identity = _identity(method, line, seed, size, work_dir)
                    found.append({**identity, **cell_of(done, size, line.rate_mbit)})
    return with_ratios(found)


def _identity(method: Method, line: Line, seed: int, size: Size, work_dir: Path) -> dict[str, Any]:
    bpb, source = quality(method, seed, size, work_dir)
    return {
        "preset": size.preset,
        "parameters": size.parameters,
        "method": method.name,
        "link": line.name,
        "seed": seed,
        "H": method.every,
        "overlap": method.overlaps,
        "rate_mbit": line.rate_mbit,
        "rtt_ms": line.rtt_ms,
        "mtu_bytes": line.mtu_bytes,
        "islands": ISLANDS,
        "steps": size.steps,
        "tokens": size.steps * ISLANDS * TOKENS_PER_STEP,
        "val_bpb": bpb,
        "val_bpb_from": source,
    }


def quality(method: Method, seed: int, size: Size, work_dir: Path) -> tuple[float | None, str]:
    """Validation bits per byte of the whole run, and where it comes from or why there is none."""
    if method.ours:
        summary = _read(work_dir / f"simulated-{method.key}-seed{seed}" / "summary.json")
        if summary is not None and summary["status"] == "done":
            return summary["val_bpb"], "lowcomm simulate, same bits"
    else:
        done = _read(work_dir / f"{method.key}-seed{seed}" / "quality.json")
        if done is not None and done["steps"] == size.steps:
            return done["val_bpb"], "whole run without shaping"
    return None, "not run"


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
