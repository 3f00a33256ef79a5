"""Rules for strangers against attacks: validation bits per byte of eight islands, of which none, one or two attack.

    python -m benchmarks.robust [--seeds 3] [--most-s SECONDS] [--rules 'A;B'] [--attacks 'A;B'] [--table-only]

Each rule is set for two faulty islands, however many there are. Islands have text of one source, dealt at random (iid)
or one package each (by package); attackers are the last ones. The first row, "gate", is the mean behind
`sync.norm_bound`; "honest mean" is the mean of those who do not attack, which no rule knows. Runs are simulations, one
after the other in this process, and those that are done are not repeated: an interrupted call goes on. Writes
benchmarks/results/robust.json, its table and its picture, which say what is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.common import RESULTS, write_result
from benchmarks.robust_report import write_robust_picture, write_robust_table
from benchmarks.robust_rows import row_of, with_success
from lowcomm.aggregate import (
    NNM,
    RFFL,
    SMEA,
    Aggregator,
    Bucketing,
    CentredClipping,
    FedCPA,
    Flag,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MoNNA,
    NormBound,
    SybilWall,
    TrimmedMean,
    Trust,
)
from lowcomm.attack import (
    ALIE,
    DMPA,
    Attack,
    FreeRider,
    Gaussian,
    InnerProduct,
    LabelNoise,
    NotANumber,
    Replay,
    Scaling,
    SignFlip,
)
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig, Packages
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import Nesterov
from lowcomm.run.run_dir import write_json
from lowcomm.trainer import train
from lowcomm.types import LowcommError

ISLANDS, STEPS, EVERY, FAULTY = 8, 96, 8, 2
PACKAGES = ("huggingface_hub", "networkx", "numpy", "peft", "rich", "sympy", "torch", "transformers")
Split = Literal["iid", "by package"]
RULES: dict[str, Aggregator] = {
    "gate": Mean(by="uniform"),
    "norm bound": NormBound(),
    "median": Median(),
    "trimmed mean": TrimmedMean(faulty=FAULTY),
    "geometric median": GeometricMedian(),
    "centred clipping": CentredClipping(),
    "multi-Krum": Krum(faulty=FAULTY, best=ISLANDS - 2 * FAULTY),
    "NNM, trimmed mean": NNM(faulty=FAULTY) | TrimmedMean(faulty=FAULTY),
    "NNM, centred clipping": NNM(faulty=FAULTY) | CentredClipping(),
    "bucketing, median": Bucketing() | Median(),
    "reputation": RFFL(),
    "MoNNA": MoNNA(faulty=FAULTY),
    "SMEA": SMEA(faulty=FAULTY),
    "flag": Flag(),
    "trust": Trust(),
    "FedCPA": FedCPA(),
    "SybilWall": SybilWall(),
}
FIRST = ("gate", "NNM, trimmed mean", "multi-Krum", "SMEA", "centred clipping")
"""Rules that are run before the others: those that the page speaks of first."""
ATTACKS: dict[str, Attack] = {
    "sign flip": SignFlip(),
    "ALIE": ALIE(),
    "scaling": Scaling(),
    "inner product": InnerProduct(),
    "label noise": LabelNoise(),
    "Gaussian": Gaussian(),
    "replay": Replay(),
    "free rider": FreeRider(),
    "NaN": NotANumber(),
    "DMPA": DMPA(),
}
COLLUDE = frozenset({"DMPA"})
"""Attacks that one island can't make alone."""
HONEST, LEFT_OUT = "honest mean", "left out"
"""The rule that nobody has: NaN under the norm of a Delta is left out by a mean that sees each contribution."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run."""

    rule: str
    attack: str | None
    attackers: int
    split: Split
    seed: int

    @property
    def name(self) -> str:
        """Of its directory."""
        words = (self.rule, self.attack or "none", str(self.attackers), self.split, f"seed{self.seed}")
        return "-".join(w.replace(", ", "+").replace(" ", "_") for w in words)

    def config(self, run_dir: Path) -> RunConfig:
        """The run's."""
        rule = TrimmedMean(faulty=0) if self.rule == HONEST else RULES[self.rule]
        attack: Attack | None = None
        if self.attack is not None:
            kind = NotANumber() if self.attack == LEFT_OUT else ATTACKS[self.attack]
            attack = replace(kind, islands=tuple(range(ISLANDS - self.attackers, ISLANDS)))
        return RunConfig(
            name=self.name,
            islands=ISLANDS,
            steps=STEPS,
            seed=self.seed,
            transport="simulated",
            batched=True,
            device="cpu",
            threads=1,
            run_dir=run_dir,
            log_every=STEPS,
            tensorboard=False,
            data=DataConfig(
                source=Packages(names=PACKAGES, max_bytes_each=200_000),
                sharding="iid" if self.split == "iid" else "by_folder",
                seq_len=64,
                batch_size=2,
                validation_sequences=128,
            ),
            model=ModelConfig(preset="nano"),
            inner=InnerConfig(optimizer=AdamW(lr=3e-3)),
            sync=SyncConfig(
                every=EVERY, outer=Nesterov(lr=0.7, momentum=0.6), aggregator=rule, attack=attack, allow_attack=True
            ),
            checkpoint=CheckpointConfig(every_s=None, export=False),
        )


def cells(seeds: int) -> Iterator[Cell]:
    """All of them, the most telling first: two of eight, the first rules, both splits; then the other rules; then one.

    Then the next seed.
    """
    splits: tuple[Split, ...] = ("iid", "by package")
    others = tuple(r for r in RULES if r not in FIRST)
    for seed in range(seeds):
        for attackers, rules in ((2, FIRST), (2, others), (1, FIRST), (1, others)):
            for split in splits:
                if attackers == 2:
                    yield from (Cell(rule=r, attack=None, attackers=0, split=split, seed=seed) for r in rules)
                if rules == FIRST:
                    yield Cell(rule=HONEST, attack=LEFT_OUT, attackers=attackers, split=split, seed=seed)
                for attack in ATTACKS:
                    if attackers > 1 or attack not in COLLUDE:
                        for rule in rules:
                            yield Cell(rule=rule, attack=attack, attackers=attackers, split=split, seed=seed)


def run(cell: Cell, work_dir: Path) -> None:
    """Run one and keep its row; a run that fails has one as well."""
    directory = work_dir / cell.name
    shutil.rmtree(directory, ignore_errors=True)
    try:
        code, failure = train(cell.config(directory)), None
        if code != 0:
            raise SystemExit(code)  # a signal stopped it: the next call does it again
    except LowcommError as error:
        failure = str(error)
    row = row_of(directory, dataclasses.asdict(cell), ISLANDS, failure)
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    write_json(directory / "row.json", row)
    print(f"{cell.name}: {row['val_bpb'] if failure is None else failure[:80]}", flush=True)


def known(wanted: list[Cell], work_dir: Path) -> list[dict[str, Any]]:
    """Rows of the cells that are done: in the work directory, or in the result file, which another machine began."""
    path = RESULTS / "robust.json"
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = {key_of(row): row for row in before}
    for cell in wanted:
        path = work_dir / cell.name / "row.json"
        if path.exists():
            rows[key_of(dataclasses.asdict(cell))] = json.loads(path.read_text(encoding="utf-8"))
    return [rows[key] for cell in wanted if (key := key_of(dataclasses.asdict(cell))) in rows]


def key_of(cell: dict[str, Any]) -> tuple[Any, ...]:
    """What tells cells apart."""
    return tuple(cell[name] for name in ("rule", "attack", "attackers", "split", "seed"))


def main() -> None:
    """Run what is missing, as long as there is time, and write what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--most-s", type=float, default=float("inf"), help="start no run after so many seconds")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/robust"))
    parser.add_argument("--rules", default="", help="run these only, separated by semicolons")
    parser.add_argument(
        "--attacks", default="", help="run these only, separated by semicolons, and what they are held against"
    )
    parser.add_argument("--table-only", action="store_true", help="run nothing: write what is known")
    options = parser.parse_args()
    wanted, start = list(cells(options.seeds)), time.monotonic()
    rules, attacks = (set(filter(None, text.split(";"))) for text in (options.rules, options.attacks))
    chosen = [
        cell
        for cell in ([] if options.table_only else wanted)
        if (not rules or cell.rule in {*rules, HONEST}) and (not attacks or cell.attack in {*attacks, None, LEFT_OUT})
    ]
    done = {key_of(row) for row in known(wanted, options.work_dir)}
    for cell in chosen:
        if time.monotonic() - start > options.most_s:
            break
        if key_of(dataclasses.asdict(cell)) not in done:
            run(cell, options.work_dir)
    rows = with_success(known(wanted, options.work_dir))
    path = write_result("robust", f"python -m benchmarks.robust --seeds {options.seeds}", rows)
    print(write_robust_table(path, len(wanted)), write_robust_picture(path))


if __name__ == "__main__":
    main()
