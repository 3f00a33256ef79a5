"""The README's first screen is true: its diff runs, its commands exist, its numbers are those of the result files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lowcomm import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


HEADS = ("```diff", "$ make train", "## What it buys", "![", "## When not", "1. ", "9. ", "## Where to go")


class ToyModel(nn.Module):
    """Takes a batch by keyword and returns something with a loss, as transformers models do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> object:
        loss = self.linear(x).square().mean()
        return type("Output", (), {"loss": loss})()


def test_the_diff_runs_after_the_change() -> None:
    """What is left when the minus lines go and the plus lines stay trains and syncs."""
    diff = re.search(r"```diff\n(.*?)```", README, re.DOTALL)
    assert diff is not None
    code = "\n".join(line[2:] for line in diff[1].splitlines() if not line.startswith("-"))
    batches = [{"x": torch.randn(4, 3)} for _ in range(70)]
    names: dict[str, object] = {"torch": torch, "build_model": ToyModel, "build_loader": lambda: batches}
    exec(compile(code, "README.md", "exec"), names)
    assert names["sync"].round == 3  # type: ignore[attr-defined]  # 32, 64 and the last merge of 6 steps


def test_the_diff_needs_what_it_adds() -> None:
    """Three added lines: import, attach and finish; nothing is hidden elsewhere."""
    diff = re.search(r"```diff\n(.*?)```", README, re.DOTALL)
    assert diff is not None
    added = [line for line in diff[1].splitlines() if line.startswith("+") and line.strip("+ ")]
    assert len(added) == 3


def test_a_stranger_reads_it_to_the_end() -> None:
    """Its first screen says what it is, how it is tried, what it buys and costs; results lie on pages of their own."""
    lines = README.splitlines()
    assert len(lines) <= 120
    where = [next(i for i, line in enumerate(lines) if line.startswith(word)) for word in HEADS]
    assert where == sorted(where) and where[2] < 40
    assert len(re.findall("<!-- table: ", README)) == len(re.findall(r"^!\[", README, re.MULTILINE)) == 1


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_numbers_are_those_of_the_result_files() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.readme", "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`lowcomm (\w+)", README))))
def test_commands_exist(command: str) -> None:
    assert f"lowcomm {command}" in cli.USAGE


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"[$`] ?make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"README names make {target}"


def test_named_files_exist() -> None:
    for name in set(re.findall(r"`(benchmarks/\w+\.py|recipes/\w+\.py)(?::\w+)?`", README)):
        assert (ROOT / name).is_file(), f"README names {name}"
    for module in set(re.findall(r"`python -m (benchmarks\.\w+)", README)):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), f"README names {module}"
