"""The checker's long run: random histories of the protocol over a faulty store, then each rule left out in its turn.

python -m benchmarks.store_model [--histories N] [--mutant-histories N] [--first-seed S] [--jobs J]

-> benchmarks/results/store_model.json: rows with mutant (None: the product as it is), histories, caught, first_seed,
invariant, seconds; for the product also what the histories held. Exit code 1 if an invariant broke in the product, or
a mutant was not noticed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.common import write_result
from tests.support.store_checker import ViolationError, World
from tests.support.store_mutants import MUTANTS, hunt

CHUNK = 25
"""Histories that a process runs in a row."""


def chunk(first_seed: int, histories: int) -> dict[str, Any]:
    """Histories until an invariant breaks; what they held."""
    row: dict[str, Any] = {"histories": 0}
    for seed in range(first_seed, first_seed + histories):
        try:
            counts = World(seed).run()
        except ViolationError as error:
            return {**row, "first_seed": seed, "invariant": error.name, "text": str(error)}
        row = {name: row.get(name, 0) + n for name, n in {**counts, "histories": 1}.items()}
    return row


def product(histories: int, first_seed: int, jobs: int) -> dict[str, Any]:
    """All of these histories, as long as no invariant breaks."""
    start, held, broken = time.monotonic(), dict[str, int](), dict[str, Any]()
    firsts = range(first_seed, first_seed + histories, CHUNK)
    sizes = [min(CHUNK, first_seed + histories - first) for first in firsts]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for row in pool.map(chunk, firsts, sizes):
            if "invariant" in row:
                broken = broken or {name: row[name] for name in ("first_seed", "invariant", "text")}
            held = {name: held.get(name, 0) + n for name, n in row.items() if isinstance(n, int)}
            print(f"{held}, {time.monotonic() - start:.0f} s", flush=True)
    held.pop("first_seed", None)
    seconds = round(time.monotonic() - start, 1)
    return {"mutant": None, "meaning": "the product", "caught": bool(broken), **broken, **held, "seconds": seconds}


def mutated(name: str, histories: int, first_seed: int) -> dict[str, Any]:
    """Histories without a rule until an invariant breaks."""
    start = time.monotonic()
    found = hunt(name, histories, first_seed)
    row = {
        "mutant": name,
        "meaning": MUTANTS[name].meaning,
        "histories": found.histories,
        "caught": found.violation is not None,
        "first_seed": found.seed,
        "invariant": None if found.violation is None else found.violation.name,
        "seconds": round(time.monotonic() - start, 1),
    }
    print(row, flush=True)
    return row


def main() -> int:
    """Run, write the result, say whether all is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, default=1000)
    parser.add_argument("--mutant-histories", type=int, default=400)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes for the product's histories")
    args = parser.parse_args()
    rows = [product(args.histories, args.first_seed, args.jobs)]
    rows += [mutated(name, args.mutant_histories, args.first_seed) for name in MUTANTS]
    command = "python -m benchmarks.store_model " + " ".join(sys.argv[1:])
    print(write_result("store_model", command.strip(), rows))
    return int(rows[0]["caught"] or not all(row["caught"] for row in rows[1:]))


if __name__ == "__main__":
    sys.exit(main())
