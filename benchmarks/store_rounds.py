"""A synchronous round over a directory beside one over gloo: the same inner steps, the same codec."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from typing import Any

from benchmarks import store_recipes as recipes
from benchmarks.common import ROOT
from benchmarks.store_members import WORK, Run, outcome
from benchmarks.store_scenarios import Row, start
from lowcomm.config import RunConfig
from lowcomm.model import ModelConfig

ROUNDS, EVERY = 8, 2


def two(short: bool) -> Row:
    """Two islands."""
    return _beside(2, short)


def four(short: bool) -> Row:
    """Four islands."""
    return _beside(4, short)


def over_gloo() -> RunConfig:
    """The recipe that gloo runs; its number of islands is a flag."""
    config = _config(2, short=False)
    return replace(config, islands=None, sync=replace(config.sync, exchange=None))


def over_gloo_short() -> RunConfig:
    """The same with a small model."""
    config = _config(2, short=True)
    return replace(config, islands=None, sync=replace(config.sync, exchange=None))


def _config(islands: int, *, short: bool) -> RunConfig:
    model = recipes.NANO if short else ModelConfig(preset="30m")
    config = recipes.run(islands=islands, rounds=ROUNDS, every=EVERY, model=model, patience_s=60.0)
    return replace(config, data=replace(config.data, seq_len=16, batch_size=1, validation_sequences=4))


def _beside(islands: int, short: bool) -> Row:
    """Seconds of a round on the clock, and bytes of an island in it: medians over rounds, without the first."""
    config = _config(islands, short=short)
    run = Run(f"round-{islands}")
    start(run, config)
    run.wait_for_end()
    lines = [line for line in run.islands[0].lines("version") if line["contributions"]]
    times = [line["time_s"] for line in lines]
    sent, received = _per_round(lines)
    gloo = _gloo(islands, short)
    return outcome(run, config) | {
        "islands": islands,
        "store_round_s": _median_step(times),
        "gloo_round_s": _median_step([line["time_s"] for line in gloo]),
        "store_sent_bytes": sent,
        "store_received_bytes": received,
        "gloo_sent_bytes": _per_round(gloo)[0],
        "gloo_received_bytes": _per_round(gloo)[1],
    }


def _gloo(islands: int, short: bool) -> list[dict[str, Any]]:
    directory = WORK / f"gloo-{islands}"
    shutil.rmtree(directory, ignore_errors=True)
    recipe = f"benchmarks/store_rounds.py:over_gloo{'_short' if short else ''}"
    command = [sys.executable, "-m", "lowcomm.cli", "train", recipe, "--islands", str(islands)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    done = subprocess.run(
        [*command, "--run-dir", str(directory)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    rows = [json.loads(row) for row in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["event"] == "sync" and row["island"] == 0]


def _median_step(times: list[float]) -> float:
    return statistics.median(b - a for a, b in itertools.pairwise(times[1:]))


def _per_round(lines: list[dict[str, Any]]) -> tuple[float, float]:
    pairs = list(itertools.pairwise(lines[1:]))
    kinds = ("bytes_sent", "bytes_received")
    sent, received = (statistics.median(b[kind] - a[kind] for a, b in pairs) for kind in kinds)
    return sent, received
