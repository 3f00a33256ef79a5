"""The headline comparison: DDP and its hooks, other packages' local methods and lowcomm's, over the same shaped links.

    python -m benchmarks.headline [--preset nano] [--seeds 1] [--only KEY,KEY] [--links slow,middle-50ms] [--peers DIR]
                                  [--part timing|quality|all] [--table-only]

Two hosts of benchmarks/netlab (root, iproute2), one island each: same model, data order and inner optimizer for all
(headline_recipes.py). Every method's processes are started once per seed and measured on each link in turn, beside
plain steps that are never synced in the same processes: utilisation is the ratio of the two times. Validation loss
comes from whole runs without shaping: lowcomm's from `lowcomm simulate`, which gives the same bits, the others' from
their own two processes. Cells that are done are not repeated, but for those in which the machine changed its pace: call
it again until none is left, or show what there is by --table-only, with losses of an earlier result. `--peers DIR`
holds the packages of the foreign methods, whose rows are left out without it:

    pip install --no-deps --target DIR -r benchmarks/peers/requirements.txt

Writes benchmarks/results/headline.json, headline.md and headline.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, Cell, run_cells, write_result
from benchmarks.headline_methods import METHODS, RECIPES, SIZES, Line, Method, Size, window
from benchmarks.headline_recipes import ISLANDS
from benchmarks.headline_report import write_headline_plot, write_headline_table
from benchmarks.headline_rows import rows_of
from benchmarks.netlab import Lab, Link
from benchmarks.peers.session import STEADY, Plan, pace_change

PORT = 29540
TIMEOUT_S = 3600
"""Of one method's processes."""


def directory(work_dir: Path, method: Method, seed: int) -> Path:
    """Of one method's cells with one seed."""
    return work_dir / f"{method.key}-seed{seed}"


def is_timed(where: Path, line: Line) -> bool:
    """Whether this cell has been measured while the machine kept its pace: else it is repeated."""
    path = where / f"{line.name}.rank0.json"
    return path.exists() and pace_change(json.loads(path.read_text(encoding="utf-8"))) <= STEADY


def environment(rank: int, address: str, own: str, peers: Path | None) -> dict[str, str]:
    """torchrun's variables of one island, and where its packages are."""
    places = [str(ROOT), str(ROOT / "kernels"), *([] if peers is None else [str(peers.resolve())])]
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(ISLANDS),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": address,
        "MASTER_PORT": str(PORT),
        "HOST_ADDR": own,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(places),
        "PYTHONUNBUFFERED": "1",
    }


def command(method: Method, plan: Plan, where: Path, name: str) -> list[str]:
    """Of one island's worker; its plan lies beside its results."""
    where.mkdir(exist_ok=True)
    subprocess.run(["rm", "-rf", str(where / "run")], check=True)
    plan.write(where / f"{name}.json")
    return [sys.executable, "-m", f"benchmarks.peers.{method.worker}", str(where / f"{name}.json"), str(where)]


def wait(children: Sequence[subprocess.Popen[bytes]], what: str, log: Path) -> None:
    """Until all have ended well; the first that fails ends them."""
    try:
        for child in children:
            if child.wait(TIMEOUT_S):
                raise SystemExit(f"{what} failed:\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}")
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{what} did not end within {TIMEOUT_S} s; see {log}") from None
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait()


def time_method(
    lab: Lab, method: Method, lines: Sequence[Line], seed: int, size: Size, where: Path, peers: Path | None
) -> None:
    """Measure a method on these links, its processes started once."""
    windows = tuple(window(method, line, size) for line in lines)
    plan = Plan(
        recipe=f"{RECIPES}:{method.recipe}",
        seed=seed,
        option=method.option,
        preset=size.preset,
        windows=windows,
        control=str(lab.control),
    )
    lab.shape(Link())
    started = command(method, plan, where, "timing")
    children = []
    for rank in range(ISLANDS):
        address = f"10.78.0.{rank + 1}"
        variables = environment(rank, "10.78.0.1", address, peers if method.foreign else None)
        children.append(lab.start(rank + 1, started, variables, where / f"timing{rank}.log"))
    wait(children, f"{method.name} on {', '.join(line.name for line in lines)}", where / "timing0.log")
    print(f"timed: {method.name}, seed {seed}, {', '.join(line.name for line in lines)}", flush=True)


def train_peer(method: Method, seed: int, size: Size, where: Path, peers: Path | None) -> None:
    """A whole run of another package's method on the loopback device, for its validation loss."""
    if (where / "quality.json").exists():
        return
    plan = Plan(
        recipe=f"{RECIPES}:{method.recipe}",
        seed=seed,
        option=method.option,
        preset=size.preset,
        train_steps=size.steps,
    )
    started, children = command(method, plan, where, "train"), []
    for rank in range(ISLANDS):
        variables = environment(rank, "127.0.0.1", "127.0.0.1", peers if method.foreign else None)
        full = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", **variables}
        with (where / f"train{rank}.log").open("ab") as log:
            children.append(subprocess.Popen(started, cwd=ROOT, env=full, stdout=log, stderr=log))
    wait(children, f"{method.name}: the whole run", where / "train0.log")
    print(f"trained: {method.name}, seed {seed}", flush=True)


def simulated(method: Method, seed: int, size: Size) -> Cell:
    """The whole run of one of lowcomm's methods."""
    chosen = ("--model.preset", size.preset, "--steps", str(size.steps))
    arguments = (f"{RECIPES}:{method.recipe}", "--seed", str(seed), "--islands", str(ISLANDS), *chosen)
    return Cell(name=f"simulated-{method.key}-seed{seed}", arguments=arguments, columns={"method": method.name})


def parsed() -> argparse.Namespace:
    """The command line, its names checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--preset", choices=sorted(SIZES), default="nano", help="the model; links scale with it")
    parser.add_argument("--only", default=None, help="keys of methods with commas between, such as torch-ddp")
    parser.add_argument("--links", default=None, help="names of links, or their beginnings, with commas between")
    parser.add_argument("--peers", type=Path, default=None, help="directory with torchft and accelerate")
    parser.add_argument("--part", choices=("timing", "quality", "all"), default="all", help="timing: only measure")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/headline"))
    parser.add_argument("--jobs", type=int, default=2, help="simulated runs at a time, one thread each")
    parser.add_argument("--table-only", action="store_true", help="run nothing: write the result of what is done")
    options = parser.parse_args()
    options.work_dir = options.work_dir.resolve()
    options.size = SIZES[options.preset]
    options.work_dir = options.work_dir / options.preset
    keys, names = {m.key: m for m in METHODS}, [line.name for line in options.size.lines]
    wanted = list(keys) if options.only is None else options.only.split(",")
    if not set(wanted) <= set(keys):
        parser.error(f"--only: {sorted(set(wanted) - set(keys))} are none of {sorted(keys)}")
    starts = names if options.links is None else options.links.split(",")
    for start in starts:
        if not any(name.startswith(start) for name in names):
            parser.error(f"--links: {start!r} is the beginning of none of {names}")
    options.methods = [keys[k] for k in wanted if options.peers is not None or not keys[k].foreign]
    options.lines = [line for line in options.size.lines if any(line.name.startswith(start) for start in starts)]
    return options


def with_earlier(rows: Sequence[dict[str, Any]], preset: str) -> list[dict[str, Any]]:
    """`rows` of one model, with losses that only an earlier result knows, and that result's rows of other models."""
    path = RESULTS / "headline.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": [], "commit": None}
    known = {(r.get("preset", "nano"), r["method"], r["seed"]): r for r in result["rows"] if r["val_bpb"] is not None}
    found = []
    for row in rows:
        told = known.get((preset, row["method"], row["seed"]))
        if row["val_bpb"] is None and told is not None:
            source = f"{told['val_bpb_from'].partition(', at ')[0]}, at {result['commit'][:7]}"
            row = {**row, "val_bpb": told["val_bpb"], "val_bpb_from": source}
        found.append(row)
    found += [r for r in result["rows"] if r.get("preset", "nano") != preset]
    return sorted(found, key=lambda r: list(SIZES).index(r["preset"]))


def main() -> None:
    """Run what is missing; write the result, its table and its plot."""
    options = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that hosts and workers are taken down
    cells = [(method, seed) for seed in range(options.seeds) for method in options.methods]
    options.work_dir.mkdir(parents=True, exist_ok=True)
    if options.part != "quality" and not options.table_only:
        for method, seed in cells:
            where = directory(options.work_dir, method, seed)
            where.mkdir(exist_ok=True)
            missing = [line for line in options.lines if not is_timed(where, line)]
            if missing:
                with Lab(ISLANDS) as lab:
                    time_method(lab, method, missing, seed, options.size, where, options.peers)
    if options.part != "timing" and not options.table_only:
        for method, seed in cells:
            if not method.ours:
                train_peer(method, seed, options.size, directory(options.work_dir, method, seed), options.peers)
        run_cells([simulated(m, s, options.size) for m, s in cells if m.ours], options.work_dir, options.jobs)
    if options.part == "timing" and not options.table_only:
        return
    rows = with_earlier(rows_of(options.work_dir, options.seeds, options.size), options.preset)
    told = "python -m benchmarks.headline --peers DIR" + (f" --seeds {options.seeds}" if options.seeds != 1 else "")
    others = dict.fromkeys(r["preset"] for r in rows if r["preset"] != "nano")
    path = write_result("headline", ", ".join([told, *(f"--preset {preset}" for preset in others)]), rows)
    print(write_headline_table(path), write_headline_plot(path))


if __name__ == "__main__":
    main()
