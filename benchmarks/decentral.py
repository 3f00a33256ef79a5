"""No centre: loss, time and peak bytes of gossip, its topologies and rules, against DDP and DiLoCo.

    python -m benchmarks.decentral [--seeds 3] [--most-s SECONDS] [--islands 8,16] [--only 'A;B'] [--table-only]
    python -m benchmarks.decentral --measure     the step time of an island and the cost of 256 nodes, on a calm machine

Simulations of the nano preset on equal tokens, one after the other in this process; those that are done are not
repeated, and seeds come outermost: an interrupted call goes on, and an early one is useful. Each run gives two rows,
for islands of equal speed and for islands that are 1, 1, 2 and 4 times slower: their weights are the same, their time
is not. Time is that of the planner's model (`lowcomm.plan.decentral`) for links of 100 Mbit/s and 50 ms, from the step
time that --measure found. Writes benchmarks/results/decentral.json, its table and two pictures, which say what is
missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import write_result
from benchmarks.decentral_methods import EVERY, METHODS, STEPS, Method
from benchmarks.decentral_report import write_decentral_pictures, write_decentral_table
from benchmarks.decentral_rows import SPEEDS, run_facts, timed
from benchmarks.decentral_scale import NODES, measure
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig
from lowcomm.data import DataConfig
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.run.run_dir import write_json
from lowcomm.trainer import train


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run."""

    method: Method
    islands: int
    seed: int

    @property
    def name(self) -> str:
        """Of its directory."""
        words = (self.method.name, self.method.topology, f"{self.islands}", f"seed{self.seed}")
        return "-".join(w.replace(", ", "+").replace(" ", "_").replace("%", "pc") for w in words)

    def config(self, run_dir: Path) -> RunConfig:
        """The run's."""
        return RunConfig(
            name=self.name,
            islands=self.islands,
            steps=STEPS,
            seed=self.seed,
            transport="simulated",
            batched=not self.method.loops,
            device="cpu",
            threads=1,
            run_dir=run_dir,
            log_every=STEPS,
            tensorboard=False,
            data=DataConfig(seq_len=64, batch_size=2, validation_sequences=128),
            model=ModelConfig(preset="nano"),
            inner=InnerConfig(optimizer=AdamW(lr=3e-3)),
            sync=self.method.sync(self.islands),
            eval=EvalConfig(every=EVERY * 8),
            checkpoint=CheckpointConfig(every_s=None, export=False),
        )


def cells(seeds: int, islands: list[int], only: set[str]) -> Iterator[Cell]:
    """Seeds outermost, what says most first, then islands, then methods in the order of the table."""
    for seed in range(seeds):
        for first in (True, False):
            for n in islands:
                for method in METHODS:
                    wanted = method.only in (None, n) and (not only or method.name in only)
                    if wanted and method.first == first:
                        yield Cell(method=method, islands=n, seed=seed)


def run(cell: Cell, work_dir: Path) -> None:
    """Run one and keep what it says."""
    directory = work_dir / cell.name
    shutil.rmtree(directory, ignore_errors=True)
    started = time.monotonic()
    if train(cell.config(directory)) != 0:
        raise SystemExit(3)  # a signal stopped it: the next call does it again
    facts = run_facts(directory)
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    write_json(directory / "facts.json", facts)
    print(f"{cell.name}: {facts['val_bpb']:.4f} in {time.monotonic() - started:.0f} s", flush=True)


def rows_of(wanted: list[Cell], work_dir: Path, step_s: float) -> list[dict[str, Any]]:
    """Two of each cell that is done."""
    rows: list[dict[str, Any]] = []
    for cell in wanted:
        path = work_dir / cell.name / "facts.json"
        if not path.exists():
            continue
        facts, sync = json.loads(path.read_text(encoding="utf-8")), cell.method.sync(cell.islands)
        for speeds in SPEEDS:
            row = {"method": cell.method.name, "topology": cell.method.topology, "islands": cell.islands}
            row |= {"split": "iid", "speeds": speeds, "seed": cell.seed, **facts}
            rows.append({**row, **timed(facts, sync, cell.islands, speeds, step_s), "step_s": step_s})
    return rows


def main() -> None:
    """Run what is missing, as long as there is time, and write what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--islands", default="8,16")
    parser.add_argument("--most-s", type=float, default=float("inf"), help="start no run after so many seconds")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/decentral"))
    parser.add_argument("--only", default="", help="run these methods only, separated by semicolons")
    parser.add_argument("--measure", action="store_true", help="measure the step time and the cost of 256 nodes first")
    parser.add_argument("--nodes", type=int, default=NODES, help="how many nodes --measure takes")
    parser.add_argument("--table-only", action="store_true", help="run nothing: write what is known")
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    measured = options.work_dir / "measured.json"
    if options.measure or not measured.exists():
        write_json(measured, measure(options.nodes))
    known = json.loads(measured.read_text(encoding="utf-8"))
    islands, start = [int(n) for n in options.islands.split(",")], time.monotonic()
    only = set(filter(None, options.only.split(";")))
    for cell in [] if options.table_only or options.measure else cells(options.seeds, islands, only):
        if time.monotonic() - start > options.most_s:
            break
        if not (options.work_dir / cell.name / "facts.json").exists():
            run(cell, options.work_dir)
    wanted = list(cells(options.seeds, islands, set()))
    rows = rows_of(wanted, options.work_dir, known["step_s"])
    rows.append({"method": "256 nodes", **known})
    path = write_result("decentral", f"python -m benchmarks.decentral --seeds {options.seeds}", rows)
    print(write_decentral_table(path, len(wanted)), *write_decentral_pictures(path))


if __name__ == "__main__":
    main()
