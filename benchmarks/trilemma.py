"""Robust and private at once: loss over noise, rule and attack, with two attackers of eight or none.

    python -m benchmarks.trilemma [--most-s SECONDS]

Nano, eight simulated islands, text dealt at random, noise on every inner step (`ExampleGaussian`), whose epsilon the
accountant says; rules see only what is noised, so that epsilon is that of the noise alone. Rows: noise multiplier,
epsilon, rule, attack, attackers, validation bits per byte, over the mean without noise and attackers. Cells that are
done are not repeated. Writes benchmarks/results/trilemma.json and its table.
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
from typing import Any

from benchmarks.common import write_result_and_table
from lowcomm.aggregate import NNM, SMEA, Aggregator, Mean, TrimmedMean
from lowcomm.attack import Attack, LabelNoise, SignFlip
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import SGD
from lowcomm.privacy import ExampleGaussian
from lowcomm.run.run_dir import write_json
from lowcomm.trainer import train
from lowcomm.types import LowcommError

ISLANDS, STEPS, EVERY, FAULTY = 8, 64, 8, 2
NOISES = (None, 0.5, 1.0, 2.0)
"""Noise multipliers; None: no mechanism."""
RULES: dict[str, Aggregator] = {
    "mean": Mean(by="uniform"),
    "SMEA": SMEA(faulty=FAULTY),
    "NNM, trimmed mean": NNM(faulty=FAULTY) | TrimmedMean(faulty=FAULTY),
}
ATTACKS: dict[str, Attack] = {"sign flip": SignFlip(), "label noise": LabelNoise()}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run."""

    noise: float | None
    rule: str
    attack: str | None

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.noise or 'none'}-{self.rule}-{self.attack or 'none'}".replace(", ", "+").replace(" ", "_")

    def config(self, run_dir: Path) -> RunConfig:
        """The run's."""
        attack = None if self.attack is None else replace(ATTACKS[self.attack], islands=(6, 7))
        privacy = None
        if self.noise is not None:
            privacy = ExampleGaussian(clip=1.0, noise_multiplier=self.noise, batches="poisson", seed=1)
        return RunConfig(
            name=self.name,
            islands=ISLANDS,
            steps=STEPS,
            transport="simulated",
            device="cpu",
            threads=1,
            run_dir=run_dir,
            log_every=STEPS,
            tensorboard=False,
            data=DataConfig(seq_len=32, batch_size=8, validation_sequences=64),
            model=ModelConfig(preset="nano"),
            inner=InnerConfig(optimizer=AdamW(lr=3e-3, weight_decay=0.0), clip_norm=None),
            sync=SyncConfig(
                every=EVERY,
                outer=SGD(lr=1.0),
                aggregator=RULES[self.rule],
                privacy=privacy,
                attack=attack,
                allow_attack=True,
            ),
            checkpoint=CheckpointConfig(every_s=None, export=False),
        )


def cells() -> Iterator[Cell]:
    """All of them, those without an attacker first."""
    for attack in (None, *ATTACKS):
        for noise in NOISES:
            for rule in RULES:
                yield Cell(noise=noise, rule=rule, attack=attack)


def run(cell: Cell, work_dir: Path) -> None:
    """Run one and keep its row."""
    directory = work_dir / cell.name
    shutil.rmtree(directory, ignore_errors=True)
    failure: str | None = None
    try:
        if train(cell.config(directory)) != 0:
            raise SystemExit("stopped: the next call does it again")
    except LowcommError as error:
        failure = str(error)
    path = directory / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    spent = summary.get("privacy") or {}
    row = {
        **dataclasses.asdict(cell),
        "attackers": 0 if cell.attack is None else FAULTY,
        "epsilon": spent.get("epsilon_total"),
        "val_bpb": summary.get("val_bpb") if failure is None else None,
        "failure": failure,
    }
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "row.json", row)
    print(f"{cell.name}: {row['val_bpb'] if failure is None else failure[:100]}", flush=True)


def table(result: dict[str, Any]) -> str:
    """Markdown: noise by rule and attack, bits per byte."""
    rows = result["rows"]
    heads = list(dict.fromkeys((r["rule"], r["attack"]) for r in rows))
    names = [f"{rule}, {attack or 'no attacker'}" for rule, attack in heads]
    lines = [f"| noise | epsilon | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for noise in dict.fromkeys(r["noise"] for r in rows):
        mine = [r for r in rows if r["noise"] == noise]
        spent = next((r["epsilon"] for r in mine if r["epsilon"] is not None), None)
        cells_of = [next((r for r in mine if (r["rule"], r["attack"]) == head), None) for head in heads]
        shown = [
            "-" if r is None else "the run ends" if r["val_bpb"] is None else f"{r['val_bpb']:.3f}" for r in cells_of
        ]
        epsilon = "none" if noise is None else "-" if spent is None else f"{spent:.3g}"
        lines.append(f"| {'none' if noise is None else noise} | {epsilon} | {' | '.join(shown)} |")
    told = f"Validation bits per byte; two of eight attack; {STEPS // EVERY} rounds, 0.12M parameters, one seed."
    return "\n".join([*lines, "", f"{told} `{result['command']}`, {result['created'][:10]}."]) + "\n"


def main() -> None:
    """Run what is missing, as long as there is time, and write what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most-s", type=float, default=float("inf"), help="start no run after so many seconds")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/trilemma"))
    options = parser.parse_args()
    start, wanted = time.monotonic(), list(cells())
    for cell in wanted:
        if time.monotonic() - start > options.most_s:
            break
        if not (options.work_dir / cell.name / "row.json").exists():
            run(cell, options.work_dir)
    paths = [options.work_dir / cell.name / "row.json" for cell in wanted]
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    print(write_result_and_table("trilemma", "python -m benchmarks.trilemma", rows, table))


if __name__ == "__main__":
    main()
