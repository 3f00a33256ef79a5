"""Rules for strangers against attacks: validation bits per byte of eight islands, of which none, one or two attack.

    python -m benchmarks.robust [--seeds 3] [--most-s SECONDS] [--table-only]

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

from benchmarks.common import write_result
from benchmarks.robust_report import write_robust_picture, write_robust_table
from benchmarks.robust_rows import row_of, with_success
from lowcomm.aggregate import (
    NNM,
    RFFL,
    Aggregator,
    Bucketing,
    CentredClipping,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    NormBound,
    TrimmedMean,
)
from lowcomm.attack import (
    ALIE,
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

ISLANDS, STEPS, EVERY, FAULTY = 8, 160, 10, 2
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
}
ATTACKS: dict[str, Attack] = {
    "sign flip": SignFlip(),
    "scaling": Scaling(),
    "Gaussian": Gaussian(),
    "ALIE": ALIE(),
    "inner product": InnerProduct(),
    "label noise": LabelNoise(),
    "free rider": FreeRider(),
    "replay": Replay(),
    "NaN": NotANumber(),
}
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
                batch_size=4,
                validation_sequences=256,
            ),
            model=ModelConfig(preset="nano"),
            inner=InnerConfig(optimizer=AdamW(lr=3e-3)),
            sync=SyncConfig(
                every=EVERY, outer=Nesterov(lr=0.7, momentum=0.6), aggregator=rule, attack=attack, allow_attack=True
            ),
            checkpoint=CheckpointConfig(every_s=None, export=False),
        )


def cells(seeds: int) -> Iterator[Cell]:
    """All of them, the most telling first: without attackers, two of eight, one of eight; then the next seed."""
    splits: tuple[Split, ...] = ("iid", "by package")
    for seed in range(seeds):
        for split in splits:
            yield from (Cell(rule=r, attack=None, attackers=0, split=split, seed=seed) for r in RULES)
        for attackers in (2, 1):
            for split in splits:
                yield Cell(rule=HONEST, attack=LEFT_OUT, attackers=attackers, split=split, seed=seed)
                for attack in ATTACKS:
                    for rule in RULES:
                        yield Cell(rule=rule, attack=attack, attackers=attackers, split=split, seed=seed)


def run(cell: Cell, work_dir: Path) -> None:
    """Run one and keep its row; a run that fails has one as well."""
    directory = work_dir / cell.name
    shutil.rmtree(directory, ignore_errors=True)
    try:
        train(cell.config(directory))
        failure = None
    except LowcommError as error:
        failure = str(error)
    row = row_of(directory, dataclasses.asdict(cell), ISLANDS, failure)
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    write_json(directory / "row.json", row)
    print(f"{cell.name}: {row['val_bpb'] if failure is None else failure[:80]}", flush=True)


def known(wanted: list[Cell], work_dir: Path) -> list[dict[str, Any]]:
    """Rows of the cells that are done."""
    paths = (work_dir / cell.name / "row.json" for cell in wanted)
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def main() -> None:
    """Run what is missing, as long as there is time, and write what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--most-s", type=float, default=float("inf"), help="start no run after so many seconds")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/robust"))
    parser.add_argument("--table-only", action="store_true", help="run nothing: write what is known")
    options = parser.parse_args()
    wanted, start = list(cells(options.seeds)), time.monotonic()
    for cell in [] if options.table_only else wanted:
        if time.monotonic() - start > options.most_s:
            break
        if not (options.work_dir / cell.name / "row.json").exists():
            run(cell, options.work_dir)
    rows = with_success(known(wanted, options.work_dir))
    path = write_result("robust", f"python -m benchmarks.robust --seeds {options.seeds}", rows)
    print(write_robust_table(path, len(wanted)), write_robust_picture(path))


if __name__ == "__main__":
    main()
