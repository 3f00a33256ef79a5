"""What `lowcomm plan --store-rate` says of a round, beside rounds over a shaped link to a server that speaks S3.

    python -m benchmarks.store_plan [--short]        results/store_plan.json and .md (root, for the network)

Members are hosts of the shaped network; the server is one, too, so that all of them share its line, as they would that
of a server of one's own: `--store-shared-rate`. Bytes and requests are means over rounds, waits medians.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from typing import Any

from benchmarks import store_recipes as recipes
from benchmarks.common import write_result_and_table
from benchmarks.netlab.lab import Link
from benchmarks.store_links import LabRun, laboratory
from lowcomm.plan.codecs import INT4
from lowcomm.plan.runtime import Job
from lowcomm.plan.store import Prices, StoreLink, store_round

COMMAND = "python -m benchmarks.store_plan"
CELLS = ((2, 20.0, 10.0), (3, 20.0, 10.0), (3, 50.0, 10.0), (2, 100.0, 5.0))
"""Members, Mbit/s of every host's line, ms one way."""
EVERY = 4


def cell(members: int, rate_mbit: float, delay_ms: float, short: bool) -> dict[str, Any]:
    """One run, and the plan for it."""
    rounds = 8 if short else 16
    config = recipes.run(islands=members, rounds=rounds, every=EVERY, model=recipes.SMALL, patience_s=60.0)
    with laboratory(members + 1, Link(rate_mbit=rate_mbit, delay_ms=delay_ms), f"plan-{members}-{rate_mbit:g}") as run:
        run.create(config)
        for number in range(members):
            run.join(f"island-{number}", host=2 + number)
        run.wait_for_end()
        found = measured(run)
    link = StoreLink(
        rate_bytes_per_s=rate_mbit * 125_000, rtt_s=4 * delay_ms / 1000, shared_bytes_per_s=rate_mbit * 125_000
    )  # member to star to server, and back
    step_s = max(1e-3, (found["round_s"] - found["blocked_s"]) / EVERY)
    job = Job(parameters=found.pop("parameters"), islands=members, step_s=step_s, steps=config.steps)
    plan = store_round(job, link, INT4, EVERY, Prices(), snapshot_s=20.0)
    pairs = {key: (getattr(plan, key), found[key]) for key in found}
    row: dict[str, Any] = {"members": members, "rate_mbit": rate_mbit, "delay_ms": delay_ms, "codec": "int4"}
    row |= {"parameters": job.parameters, "rounds": rounds, "short": short}
    for key, (planned, seen) in pairs.items():
        row |= {f"planned_{key}": planned, f"measured_{key}": seen, f"{key}_error": planned / seen - 1}
    return row


def measured(run: LabRun) -> dict[str, Any]:
    """Per member and round, between the first round and the last."""
    spans: dict[str, list[float]] = {"up_bytes": [], "down_bytes": [], "requests": [], "round_s": []}
    keys = {"up_bytes": "bytes_sent", "down_bytes": "bytes_received", "requests": "requests", "round_s": "time_s"}
    waits: list[float] = []
    for island in run.islands:
        lines = [line for line in island.lines("version") if line["contributions"]][1:-1]
        for name, key in keys.items():
            steps = [b[key] - a[key] for a, b in itertools.pairwise(lines)]
            spans[name].append(statistics.median(steps) if name == "round_s" else statistics.mean(steps))
        waits += [line["blocked_s"] for line in island.lines("sync")[2:-1]]
    found: dict[str, Any] = {name: statistics.mean(values) for name, values in spans.items()}
    return found | {"blocked_s": statistics.median(waits), "parameters": run.islands[0].summary()["parameters"]}


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    heads = ("members", "Mbit/s", "up/round", "down/round", "requests", "seconds without training")
    lines = [f"| {' | '.join(heads)} |", "|" + "---:|" * len(heads)]
    for r in result["rows"]:
        cells = [str(r["members"]), f"{r['rate_mbit']:g}"]
        for key, unit in (("up_bytes", 1e6), ("down_bytes", 1e6)):
            cells.append(f"{r['planned_' + key] / unit:.2f} MB ({r[key + '_error']:+.0%})")
        cells.append(f"{r['planned_requests']:.0f} ({r['requests_error']:+.0%})")
        cells.append(f"{r['planned_blocked_s']:.2f} ({r['blocked_s_error']:+.0%})")
        lines.append(f"| {' | '.join(cells)} |")
    first = result["rows"][0]
    lines.append(
        f"\nPlanned, and in brackets by how much the plan is above what was measured. "
        f"{first['parameters']:,} parameters, int4, {first['rounds']} rounds; all members share the server's "
        f"line. `{result['command']}`, {result['hardware']['cpu']}, {result['created'][:10]}."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """All cells, one after the other."""
    parser = argparse.ArgumentParser(description="Rounds over a store: planned and measured.")
    parser.add_argument("--short", action="store_true", help="half as many rounds")
    short = parser.parse_args().short
    rows = []
    for members, rate_mbit, delay_ms in CELLS:
        rows.append(cell(members, rate_mbit, delay_ms, short))
        print(rows[-1], flush=True)
    print(write_result_and_table("store_plan", COMMAND + (" --short" if short else ""), rows, table))


if __name__ == "__main__":
    main()
