"""launch/local.sh and launch/node.sh for real: two islands train, stop when told, and leave nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import ROOT, write_corpus

RECIPE = """
from pathlib import Path
from tests.support.runs import small

def two():
    return small(Path({corpus!r}), None, islands=None, transport="collective")
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (tmp_path / "tiny.py").write_text(RECIPE.format(corpus=str(write_corpus(corpus))), encoding="utf-8")
    return f"{tmp_path / 'tiny.py'}:two"


def start(*arguments: str, tag: str, script: str = "local.sh") -> subprocess.Popen[str]:
    """`tag` is in the environment of every process of this run."""
    return subprocess.Popen(
        ["bash", f"launch/{script}", "--python", sys.executable, "--behind-firewall", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1", "LAUNCH_TEST": tag},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left_behind(tag: str) -> list[str]:
    """Processes with LAUNCH_TEST=tag, whoever is their parent now."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"LAUNCH_TEST={tag}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it ended meanwhile, or is someone else's
            continue
    return found


def wait_for(process: subprocess.Popen[str], start_of_line: str) -> None:
    """Read its output up to such a line: no clock is needed."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(start_of_line):
            return
    raise AssertionError("".join(lines) + (process.stderr.read() if process.stderr else ""))


def test_two_islands_train_to_the_end(recipe: str, tmp_path: Path) -> None:
    tag = str(tmp_path)
    process = start(recipe, "--run-dir", str(tmp_path / "run"), tag=tag)
    out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, out + errors
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["islands"], summary["rounds"]) == ("done", 2, 3)
    assert left_behind(tag) == []


def test_bad_input_of_the_run_keeps_its_exit_code(recipe: str, tmp_path: Path) -> None:
    """torchrun ends with 1 whatever its ranks ended with."""
    process = start(recipe, "--run-dir", str(tmp_path / "run"), "--sync.every", "0", tag=str(tmp_path))
    out, errors = process.communicate(timeout=200)
    assert process.returncode == 2, out + errors
    assert "sync.every = 0 is not allowed" in errors
    assert not (tmp_path / "run").exists()
    assert left_behind(str(tmp_path)) == []


def test_a_node_whose_input_ends_saves_and_leaves(recipe: str, tmp_path: Path) -> None:
    """As when its ssh connection breaks. SIGTERM: transport/test_listeners.py."""
    tag, run = str(tmp_path), tmp_path / "run"
    flags = ("--steps", "100000", "--log-every", "1", "--run-dir", str(run))
    process = start("--ranks", "2", "--watch-stdin", recipe, *flags, tag=tag, script="node.sh")
    wait_for(process, "step ")
    out, errors = process.communicate(timeout=200)  # which closes its input
    assert process.returncode == 3, out + errors
    assert json.loads((run / "summary.json").read_text())["status"] == "stopped"
    assert list((run / "checkpoints").glob("*-stop0/island-00001")), "island 1 is not in the checkpoint of the stop"
    assert left_behind(tag) == []
