"""Result files come from the history: a figure whose code nobody can look at is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
TO_MEASURE = {"fedlora", "fewer_bytes", "planner", "planner_constants", "sweep"}
"""Files whose commits were lost with branches that were merged as one commit; each leaves this list when it is made
anew, and none may join it."""


def git(*arguments: str, where: Path = ROOT) -> str | None:
    """What git prints; None: it fails, or is not there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commits_of(result: dict[str, Any]) -> set[str]:
    """Those that a file and its rows name, without the mark of changes that were not committed yet."""
    named = [result["commit"], *(row.get("commit") for row in result["rows"])]
    return {str(commit).removesuffix("+changes") for commit in named if commit is not None}


def unknown(result: dict[str, Any], where: Path = ROOT) -> set[str]:
    """Commits of a result that are no ancestors of what is checked out."""
    return {c for c in commits_of(result) if git("merge-base", "--is-ancestor", c, "HEAD", where=where) is None}


@pytest.fixture(scope="module")
def _history() -> None:
    if git("rev-parse", "HEAD") is None:
        pytest.skip("this is no git checkout: nothing is known of commits")
    if git("rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("a shallow clone lacks the commits that results name")


@pytest.mark.usefixtures("_history")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, marks=pytest.mark.xfail(reason="to be measured anew") if p.stem in TO_MEASURE else ())
        for p in RESULTS
    ],
    ids=lambda p: p.stem,
)
def test_a_result_names_a_commit_of_the_history(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["commit"], f"{path.name} says nothing of the code that made it"
    lost = unknown(result)
    assert not lost, f"{path.name} was made by {sorted(lost)}, which the history does not have: measure it anew"


@pytest.mark.usefixtures("_history")
def test_a_commit_that_nobody_has_is_found() -> None:
    head = git("rev-parse", "HEAD")
    result = {"commit": f"{head}+changes", "rows": [{"commit": "0" * 40}, {}]}
    assert unknown(result) == {"0" * 40}
