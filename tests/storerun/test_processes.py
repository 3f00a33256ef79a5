"""Real processes: the commands as a user types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowcomm.cli import main
from tests.support.runs import summary, write_corpus

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
from pathlib import Path
from tests.support.members import store_config

def small():
    return store_config(Path({corpus!r}), steps=60)
"""


def command(*arguments: object) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "lowcomm.cli", *map(str, arguments)], env=env, text=True, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def recipe(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    path = tmp_path / "store_recipe.py"
    path.write_text(RECIPE.format(corpus=str(write_corpus(tmp_path / "text"))), encoding="utf-8")
    return path


def until(path: Path) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def member_of(name: str, store: Path) -> int:
    """Process id of the island of this name."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(store).encode() in words and name.encode() in words and b"join" in words:
            return int(place.name)
    raise AssertionError(name)


@pytest.mark.long
@pytest.mark.slow
def test_one_of_two_islands_is_killed_and_the_run_ends(tmp_path: Path) -> None:
    store, runs = tmp_path / "store", tmp_path / "runs"
    train = command(
        "train", f"{recipe(tmp_path)}:small", "--store", store, "--run-dir", runs, "--sync.exchange.patience-s", "0.5"
    )
    until(store / "commits" / "000000000002")
    os.kill(member_of("island-1", store), signal.SIGKILL)
    said, _ = train.communicate(timeout=200)
    assert train.returncode == 0, said
    assert "island-1 was killed by SIGKILL: the run goes on without it" in said
    assert summary(runs / "island-0")["status"] == "done" and not (runs / "island-1" / "summary.json").exists()
    assert main(["verify", str(store)]) == 0


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "pipeline", "zero1"])
def test_an_island_of_two_ranks_is_one_member(tmp_path: Path, kind: str) -> None:
    """The same weights as an island of one rank has that trains beside it."""
    store, runs = tmp_path / "store", tmp_path / "runs"
    train = command(
        "train", f"{recipe(tmp_path)}:small", "--store", store, "--run-dir", runs, "--steps", "24", "--islands", "2",
        "--model.tied-embeddings", "False", "--island.size", "2", "--island.kind", kind, "--no-tensorboard",
    )  # fmt: skip
    said, _ = train.communicate(timeout=400)
    assert train.returncode == 0, said
    found = [json.loads((runs / f"island-{k}" / "summary.json").read_text(encoding="utf-8")) for k in range(2)]
    assert found[0]["weights_sha256"] == found[1]["weights_sha256"] and found[0]["val_loss"] == found[1]["val_loss"]
