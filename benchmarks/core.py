"""The core of a round in figures: how many calls and files a plain sync takes, what ties the files, what it costs.

    python -m benchmarks.core [--before COMMIT] [--launches 11] [--preset 30m] [--static]

One row for this tree and, with --before, one for a commit, which is checked out into a temporary git worktree.

calls, files    functions of lowcomm/ that one plain fp32 sync of one island calls, and the files that they stand in
entry_calls     how many of them are in the file that defines LocalSGD
circle_files    files that import each other in a circle (benchmarks/structure.py), and the largest circle
takers          functions with an argument that is a LocalSGD, and their files
method_lines    lines of the files of Krum, ring gossip and buffered asynchrony, where a tree has them
sync_*          benchmarks/sync_cost.py: launches of both trees in turn, so that a busy machine is busy for both
idle_*          benchmarks/core_step.py: an inner step in which the LocalSGD has nothing to do, over a plain loop's
simulation_*    benchmarks/simulation_cost.py: a simulated round of 16 islands beyond its own forward and backward
memory_*        benchmarks/islands.py: what three fp32 syncs add to a rank of an FSDP2 island at their peak
--static leaves out the last four. What is not measured now is taken over from the earlier result of the same commit.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, write_result
from benchmarks.structure import circles, graph, sources, takers
from benchmarks.sync_cost import summarise
from lowcomm.run.run_dir import git_commit

METHODS = {"krum": ("krum",), "ring_gossip": ("ring", "gossip"), "fedbuff": ("fedbuff", "buffered")}
"""Names of the files that a method would be, by method."""


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A commit's tree in a temporary directory; the repository forgets it afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        _git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def run_python(tree: Path, *arguments: str) -> str:
    """What a process prints that sees a tree's packages and no other's."""
    paths = f"{tree}{os.pathsep}{tree / 'kernels'}"
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def static(tree: Path) -> dict[str, Any]:
    """What needs no clock."""
    found = json.loads(run_python(tree, "-P", str(ROOT / "benchmarks" / "core_probe.py"), str(tree)))
    tied, taking = circles(graph(tree)), takers(tree, "LocalSGD")
    files = sources(tree).values()
    lines = {
        method: {
            str(path.relative_to(tree)): len(path.read_text(encoding="utf-8").splitlines())
            for path in files
            if path.stem in names
        }
        for method, names in METHODS.items()
    }
    return {
        **found,
        "circle_files": sum(map(len, tied)),
        "largest_circle": max(map(len, tied), default=0),
        "takers": len(taking),
        "taker_files": len({place.partition(":")[0] for place in taking}),
        "method_lines": lines,
        "package_files": len(files),
    }


def sync_costs(trees: list[Path], preset: str, launches: int) -> list[dict[str, Any]]:
    """summarise() of sync_cost for each tree, launched in turn."""
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments += ["-m", "benchmarks.sync_cost", "--worker", "--preset", preset]
    turns: list[list[list[list[float]]]] = [[] for _ in trees]
    for launch in range(launches):
        for tree, seen in list(zip(trees, turns, strict=True))[:: 1 if launch % 2 else -1]:
            seen.append(json.loads(run_python(tree, *arguments).strip().splitlines()[-1]))
    rows = [summarise(preset, seen) for seen in turns]
    return [{k if k.startswith("sync_") else f"sync_{k}": v for k, v in row.items()} for row in rows]


def idle_steps(trees: list[Path], launches: int) -> list[dict[str, Any]]:
    """Medians over launches of core_step.py for each tree, launched in turn."""
    seen: list[list[dict[str, float]]] = [[] for _ in trees]
    for _ in range(launches):
        for tree, rows in zip(trees, seen, strict=True):
            rows.append(json.loads(run_python(tree, "-P", str(ROOT / "benchmarks" / "core_step.py"), str(tree))))
    return [{f"idle_{k}": statistics.median(row[k] for row in rows) for k in rows[0]} for rows in seen]


def simulation(tree: Path, rounds: int = 5) -> dict[str, Any]:
    """What simulation_cost.py says, without a file."""
    code = (
        "import sys; from benchmarks import simulation_cost\n"
        f"sys.argv = ['', '--rounds', '{rounds}', '--every', '8']\n"
        "simulation_cost.write_result = lambda *_: ''\n"
        "simulation_cost.main()"
    )
    found = ast.literal_eval(run_python(tree, "-c", code).strip().splitlines()[-1])
    return {f"simulation_{k}": v for k, v in found.items()}


def memory(tree: Path, preset: str) -> dict[str, Any]:
    """Of the rank that needs most."""
    code = (
        "import argparse, json; from benchmarks import islands\n"
        f"options = argparse.Namespace(preset={preset!r}, step_preset='tiny', turns=1)\n"
        "found = islands.launch('fsdp', 'fp32', options)\n"
        "print(json.dumps(max(found, key=lambda rank: rank['sync_of_shard'])))"
    )
    found = json.loads(run_python(tree, "-c", code).strip().splitlines()[-1])
    return {f"memory_{k}": v for k, v in found.items()}


def known() -> dict[str, dict[str, Any]]:
    """Rows of the earlier result by commit."""
    path = RESULTS / "core.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return {row["commit"]: row for row in rows}


def main() -> None:
    """One row per tree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default=None, help="a commit to compare with")
    parser.add_argument("--launches", type=int, default=11)
    parser.add_argument("--preset", default="30m")
    parser.add_argument("--static", action="store_true", help="no timing, no memory")
    options = parser.parse_args()
    with ExitStack() as stack:
        trees = {git_commit() or "unknown": ROOT}
        if options.before is not None:
            commit = _git("rev-parse", options.before)
            trees = {commit: stack.enter_context(checkout(commit)), **trees}
        rows = [{"commit": commit, **static(tree)} for commit, tree in trees.items()]
        if not options.static:
            costs = sync_costs(list(trees.values()), options.preset, options.launches)
            idle = idle_steps(list(trees.values()), options.launches)
            rows = [
                row | cost | steps | simulation(tree) | memory(tree, options.preset)
                for row, cost, steps, tree in zip(rows, costs, idle, trees.values(), strict=True)
            ]
    earlier = known()
    rows = [earlier.get(row["commit"], {}) | row for row in rows]
    for row in rows:
        print(json.dumps(row))
    before = "" if options.before is None else f" --before {options.before}"
    told = " --static" if options.static else f" --launches {options.launches} --preset {options.preset}"
    print(write_result("core", f"python -m benchmarks.core{before}{told}", rows))


if __name__ == "__main__":
    main()
