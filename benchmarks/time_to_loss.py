"""Time and bytes to DDP's loss: a method runs on until its validation loss is DDP's, or thrice the tokens are spent.

    python -m benchmarks.time_to_loss [--preset nano] [--seeds 3] [--only KEY,KEY] [--peers DIR] [--table-only]

Two islands, the models, data and methods of benchmarks/headline.py. Targets are DDP's losses at 25, 50 and 100 % of its
steps. The learning rate falls over a whole run, so that running on means a longer run: each method is run at 1, 1.25,
1.5, 2 and 3 times DDP's steps, in turn, until one of these runs reaches DDP's last loss; what counts is the earliest
evaluation (every 128 steps) at or below a target over all its runs. A later seed begins at the length at which seed 0
got there. Losses do not depend on the machine's load: lowcomm's come from `lowcomm simulate --batched`, those of DDP's
hooks and of other packages (`--peers DIR`) from their own two processes. Seconds of steps and syncs on shaped links are
those of benchmarks/results/headline.json (time_to_loss_rows.py); rows without any say so. Runs that are done are not
repeated, and those of an earlier result without runs here stay: an interrupted call goes on.

Writes benchmarks/results/time_to_loss.json and time_to_loss.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, Cell, run_cells, write_result_and_table
from benchmarks.headline import command, environment, wait
from benchmarks.headline_methods import BASE, RECIPES, SIZES, Size
from benchmarks.headline_recipes import ISLANDS
from benchmarks.peers.session import Plan
from benchmarks.time_to_loss_methods import ENTRANTS, LENGTHS, MUON_BASE, Entrant
from benchmarks.time_to_loss_rows import Curve, peer_curve, rows_of, simulated_curve
from benchmarks.time_to_loss_table import time_to_loss_table

EVAL_EVERY = 128
"""Steps between two points of a curve: two rounds of the longest period."""


def name_of(entrant: Entrant, seed: int, length: float) -> str:
    """Of a run's directory."""
    return f"{entrant.key}-seed{seed}-x{length:g}"


def curve_of(entrant: Entrant, seed: int, length: float, work_dir: Path) -> Curve | None:
    """Of a run; None: it is not done."""
    directory = work_dir / name_of(entrant, seed, length)
    if entrant.peer is not None:
        return peer_curve(directory, length, entrant.peer.every)
    return simulated_curve(directory, length, every_step=entrant.name in (BASE, MUON_BASE))


def cell_of(entrant: Entrant, seed: int, length: float, size: Size) -> Cell:
    """A whole run, simulated."""
    arguments = (
        *(f"{RECIPES}:{entrant.recipe}", "--seed", str(seed), "--islands", str(entrant.islands)),
        *("--model.preset", size.preset, "--steps", str(round(length * size.steps))),
        *("--eval.every", str(EVAL_EVERY), *(("--batched",) if entrant.islands > 1 else ())),
    )
    return Cell(name=name_of(entrant, seed, length), arguments=arguments, columns={})


def train_peer(entrant: Entrant, seed: int, length: float, size: Size, options: argparse.Namespace) -> None:
    """A whole run by the method's own processes, with its curve."""
    method, where = entrant.peer, options.work_dir / name_of(entrant, seed, length)
    assert method is not None
    plan = Plan(
        recipe=f"{RECIPES}:{method.recipe}",
        seed=seed,
        option=method.option,
        preset=size.preset,
        train_steps=round(length * size.steps),
        eval_every=EVAL_EVERY,
    )
    started, children = command(method, plan, where, "train"), []
    for rank in range(ISLANDS):
        variables = environment(rank, "127.0.0.1", "127.0.0.1", options.peers if method.foreign else None)
        with (where / f"train{rank}.log").open("ab") as log:
            full = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", **variables}
            children.append(subprocess.Popen(started, env=full, stdout=log, stderr=log))
    wait(children, f"{method.name}: a whole run", where / "train0.log")


def curves_of(entrant: Entrant, seed: int, work_dir: Path) -> list[Curve]:
    """Of all runs that are done, by length."""
    found = [curve_of(entrant, seed, length, work_dir) for length in entrant.lengths]
    return [c for c in found if c is not None]


def next_length(entrant: Entrant, seed: int, work_dir: Path) -> float | None:
    """Of the run that is to be made next; None: the target is reached, or all that may be spent is."""
    done = curves_of(entrant, seed, work_dir)
    ddp = curves_of(ENTRANTS[0], seed, work_dir)
    target_bpb = ddp[0].points[-1].bpb if ddp else None
    if target_bpb is not None and any(c.first_at(target_bpb) is not None for c in done):
        return None
    first = 1.0 if seed == 0 else reached_at(entrant, work_dir)
    tried = {c.length for c in done}
    return next((length for length in entrant.lengths if length >= first and length not in tried), None)


def reached_at(entrant: Entrant, work_dir: Path) -> float:
    """Length of the run of seed 0 that reached DDP's last loss, or of its longest one."""
    done, ddp = curves_of(entrant, 0, work_dir), curves_of(ENTRANTS[0], 0, work_dir)
    target_bpb = ddp[0].points[-1].bpb if ddp else 0.0
    return next((c.length for c in done if c.first_at(target_bpb) is not None), done[-1].length if done else 1.0)


def run_missing(options: argparse.Namespace) -> None:
    """Seed by seed, so that an interrupted call leaves whole columns."""
    for seed in range(options.seeds):
        for entrant in options.entrants:
            while (length := next_length(entrant, seed, options.work_dir)) is not None and length <= options.longest:
                if entrant.peer is None:
                    run_cells([cell_of(entrant, seed, length, options.size)], options.work_dir, jobs=1)
                else:
                    train_peer(entrant, seed, length, options.size, options)


def with_earlier(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows`, and those of an earlier result whose runs are not here."""
    path = RESULTS / "time_to_loss.json"
    earlier = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    keys = ("preset", "method", "seed")
    here = {tuple(r[k] for k in keys) for r in rows}
    every = [*rows, *(r for r in earlier if tuple(r[k] for k in keys) not in here)]
    order = [e.name for e in ENTRANTS]
    return sorted(every, key=lambda r: (list(SIZES).index(r["preset"]), order.index(r["method"]), r["seed"]))


def parsed() -> argparse.Namespace:
    """The command line, its names checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(SIZES), default="nano")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=None, help="keys of methods with commas between, such as lowcomm-diloco-fp32")
    parser.add_argument("--longest", type=float, default=LENGTHS[-1], help="longest runs that are made, in DDP's")
    parser.add_argument("--peers", type=Path, default=None, help="directory with torchft and accelerate")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/time_to_loss"))
    parser.add_argument("--table-only", action="store_true", help="run nothing: write the result of what is done")
    options = parser.parse_args()
    keys = {e.key: e for e in ENTRANTS}
    wanted = list(keys) if options.only is None else options.only.split(",")
    if not set(wanted) <= set(keys):
        parser.error(f"--only: {sorted(set(wanted) - set(keys))} are none of {sorted(keys)}")
    options.size = SIZES[options.preset]
    options.work_dir = options.work_dir.resolve() / options.preset
    foreign = options.peers is not None
    options.entrants = [e for e in ENTRANTS if e.key in wanted and (foreign or e.peer is None or not e.peer.foreign)]
    return options


def main() -> None:
    """Run what is missing; write the result and its table."""
    options = parsed()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    if not options.table_only:
        run_missing(options)
    curves = {
        (e.name, s): c for e in ENTRANTS for s in range(options.seeds) if (c := curves_of(e, s, options.work_dir))
    }
    headline = json.loads((RESULTS / "headline.json").read_text(encoding="utf-8"))
    rows = with_earlier(rows_of(curves, headline, options.size))
    told = dict.fromkeys(r["preset"] for r in rows)
    text = ", ".join(f"python -m benchmarks.time_to_loss --preset {preset}" for preset in told)
    print(write_result_and_table("time_to_loss", text, rows, time_to_loss_table))


if __name__ == "__main__":
    main()
