"""Audit and referee on a long run: one step of 2,560 is changed, and found.

    python -m benchmarks.verification [--steps 2560] [--every 32]

Two runs of one recipe (nano, two islands, hashes of every step): in the second, one island adds 1e-3 to one gradient of
one step. The referee of `lowcomm verify` finds the step, and an audit of all rounds does, too. Rows: pairs of hashes
compared, seconds; and what hashing costs, seconds per step with and without (to be measured on a calm machine).
Writes benchmarks/results/verification.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import write_result
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.island import PlainIsland
from lowcomm.island.plain import Batch
from lowcomm.model import ModelConfig
from lowcomm.trainer import train
from lowcomm.verification.audit import audit
from lowcomm.verification.referee import referee
from lowcomm.verification.rerun import open_recorded

ISLANDS, CHEAT_ISLAND = 2, 1


def config(run_dir: Path, steps: int, every: int, hashes: bool) -> RunConfig:
    """A run; a checkpoint every eight rounds, all of them kept."""
    return RunConfig(
        name="verified",
        islands=ISLANDS,
        steps=steps,
        transport="simulated",
        device="cpu",
        threads=1,
        run_dir=run_dir,
        log_every=steps,
        tensorboard=False,
        step_hashes=hashes,
        data=DataConfig(seq_len=32, batch_size=2, validation_sequences=8),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=every),
        checkpoint=CheckpointConfig(every_rounds=8, every_s=None, keep=1000, export=False),
    )


def cheating(changed_step: int) -> Any:
    """PlainIsland.backward of a run in which one island changes one gradient; simulated islands take turns."""
    honest, calls = PlainIsland.backward, [0]

    def backward(self: PlainIsland, batches: Sequence[Batch]) -> float:
        loss = honest(self, batches)
        step, island = divmod(calls[0], ISLANDS)
        calls[0] += 1
        if (island, step + 1) == (CHEAT_ISLAND, changed_step):
            grad = self.params[0].grad
            assert grad is not None
            grad.view(-1)[0] += 1e-3
        return loss

    return backward


def timed(name: str, work: Path, settings: RunConfig) -> float:
    """Seconds of a run."""
    shutil.rmtree(work / name, ignore_errors=True)
    start = time.perf_counter()
    if train(dataclasses.replace(settings, run_dir=work / name)) != 0:
        raise SystemExit(f"{name} did not end")
    return time.perf_counter() - start


def judged(what: str, lines: list[str], seconds: float, settings: RunConfig, changed: int) -> dict[str, Any]:
    """A row of what an audit or the referee said."""
    text = " ".join(lines)
    found = re.search(r"island (\d+), inner step (\d+) is the first", text)
    compared = [int(n) for n in re.findall(r"(\d+) hashes compared", text)]
    assert found is not None and compared, text
    rounds, leaves = settings.steps // settings.sync.every, ISLANDS * (settings.sync.every + 1)
    return {
        "what": what,
        "steps": settings.steps,
        "changed_step": changed,
        "changed_island": CHEAT_ISLAND,
        "found_step": int(found[2]),
        "found_island": int(found[1]),
        "hashes_compared": sum(compared),
        "log2_of_hashes": math.log2(rounds * leaves),
        "seconds": seconds,
        "said": lines,
    }


def main() -> None:
    """Run, cheat, audit, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2560)
    parser.add_argument("--every", type=int, default=32)
    parser.add_argument("--changed", type=int, default=1234, help="the step that is changed")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/verification"))
    options = parser.parse_args()
    settings, work = config(options.work_dir, options.steps, options.every, hashes=True), options.work_dir
    plain_s = timed("plain", work, dataclasses.replace(settings, step_hashes=False))
    honest_s = timed("honest", work, settings)
    honest = PlainIsland.backward
    PlainIsland.backward = cheating(options.changed)
    timed("changed", work, settings)
    PlainIsland.backward = honest
    rows: list[dict[str, Any]] = []
    for what in ("referee", "audit of all rounds"):
        lines: list[str] = []
        a, b = (open_recorded(work / name) for name in ("honest", "changed"))
        start = time.perf_counter()
        if what == "referee":
            referee(a, b, lines.append)
        else:
            audit(b, options.steps // options.every, 0, lines.append)
        lines = [line.replace(f"{work}/", "") for line in lines]
        rows.append(judged(what, lines, time.perf_counter() - start, settings, options.changed))
    steps = options.steps * ISLANDS
    cost = {"what": "hashing", "plain_s_per_step": plain_s / steps, "hashed_s_per_step": honest_s / steps}
    size = sum(p.stat().st_size for p in (work / "honest" / "steps").glob("island-*.jsonl")) / steps
    print(write_result("verification", "python -m benchmarks.verification", [*rows, {**cost, "bytes_per_step": size}]))


if __name__ == "__main__":
    main()
