"""Two hundred faults, one plan: a run in a store, beside fixed islands and torchft's DiLoCo on what they can be given.

    python -m benchmarks.chaos [--faults 200] [--seed 18] [--runs N] [--peers DIR]

Each run of the plan is kept when it is there (runs/bench/chaos/rows-*.json), so that a call goes on where the last one
was ended; --runs: at most so many in this call. Rows of fixed islands are those of benchmarks/results/faults.json;
torchft needs `--peers DIR` with it (benchmarks/headline.py says how); without it those rows stay as they were.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.chaos_fixed import fixed_rows
from benchmarks.chaos_table import table
from benchmarks.chaos_torchft import torchft_rows
from benchmarks.common import ROOT, write_result_and_table
from lowcomm.chaos.campaign import Calm, Campaign
from lowcomm.chaos.command import HEAVY
from lowcomm.chaos.default_run import EVERY, default_run
from lowcomm.chaos.plan import draw
from lowcomm.private_files import make_directory
from lowcomm.run.run_dir import git_commit, write_json

WORK = ROOT / "runs" / "bench" / "chaos"
ROUNDS, PER_RUN, ISLANDS, FOR_S = 34, 8, 4, 3.0
Row = dict[str, Any]


def store_rows(seed: int, count: int, most: int) -> tuple[list[Row], int]:
    """Rows of the runs that are there, after at most so many new ones; and how many runs are still to be made."""
    plan = draw(seed, count, islands=ISLANDS, rounds=ROUNDS, per_run=PER_RUN, for_s=FOR_S)
    config = dataclasses.replace(default_run(), islands=ISLANDS, steps=ROUNDS * EVERY)
    work = WORK / f"{seed}-{count}"
    make_directory(work)
    campaign = Campaign(config=config, plan=plan, directory=work)
    campaign.calm = Calm(**kept(work / "calm.json", lambda: dataclasses.asdict(campaign.quiet())))
    rows: list[Row] = []
    left = 0
    for number in range(plan.runs):
        path = work / f"rows-{number:03d}.json"
        if not path.exists() and most <= 0:
            left += 1
            continue
        most -= not path.exists()
        rows += kept(path, lambda number=number: made(campaign, number))
    return rows, left


def made(campaign: Campaign, number: int) -> list[Row]:
    """Rows of a run that is made now."""
    result = campaign.go(number)
    more = {"islands": ISLANDS, "run_wall_s": result.wall_s, "run_cpu_s": result.cpu_s, "commit": git_commit()}
    return [row | more for row in result.rows]


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What the file holds, or what is made now and put there."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Go on with the plan, and write what there is."""
    parser = argparse.ArgumentParser(description="Two hundred faults.")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=18)
    parser.add_argument("--runs", type=int, default=10_000, help="at most so many new runs in this call")
    parser.add_argument(
        "--peers", default=None, metavar="DIR", help="directory with torchft; without it those rows stay"
    )
    options = parser.parse_args()
    for module in HEAVY:
        importlib.import_module(module)
    rows, left = store_rows(options.seed, options.faults, options.runs)
    rows += fixed_rows() + torchft_rows(options.peers, WORK / "torchft")
    write_result_and_table("chaos", "python -m benchmarks.chaos", rows, table)
    print(f"{len(rows)} rows; runs still to be made: {left}", flush=True)


if __name__ == "__main__":
    main()
