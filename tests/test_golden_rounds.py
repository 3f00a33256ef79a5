"""The bits that every method gives, round by round, pinned: code may move, and no bit of these moves with it.

`tests/golden/rounds.json` has hashes of the global weights after every round, and of each island's own weights at the
end, for every line of tests/methods.py, for features together, for the packaged recipes cut to a nano model, and for
runs that an earlier version left behind (`tests/golden/runs`). Simulated islands and four processes over gloo must both
give them. `pytest tests/test_golden_rounds.py --regenerate-golden` rewrites the hashes (never a stored run): only for a
new method, or where a method changes on purpose; the commit says which and why.

What they depend on: torch's and numpy's generators and kernels, so their versions; of recipes also how transformers
initialises a model. Not on the number of cores or the vector width: cases run in processes of their own, whose
environment (`PORTABLE`) selects one thread and the instructions that every x86-64 has. Another architecture (ARM) has
other bits, and compares only gloo with the simulation.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.golden_rounds import ISLANDS, LEFT, PORTABLE, cases, for_long_runs, left_behind, loops

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).parent / "golden" / "rounds.json"
# the first test waits for all processes, on a machine that may be busy
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]
SAME_BITS = platform.machine() in ("x86_64", "AMD64")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, long: bool, regenerate_golden: bool) -> dict[str, dict[str, Any]]:
    """What each process gave, by its name; one start for all cases."""
    out = tmp_path_factory.mktemp("rounds")
    environment = {**os.environ, **PORTABLE, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    command = [sys.executable, "-m", "tests.golden_rounds", str(out)]
    command += ["--long"] if long or regenerate_golden else []
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in out.glob("*.json")}
    assert not any("error" in rows for rows in found.values()), found
    simulated = {k: v for name, rows in found.items() if name.startswith("simulated") for k, v in rows.items()}
    return {"simulated": simulated, **{name: rows for name, rows in found.items() if name.startswith("gloo")}}


def pinned(row: dict[str, Any]) -> dict[str, Any]:
    """What the file keeps of a case: no bytes, since messages may be joined where no bit of the weights moves."""
    return {key: value for key, value in row.items() if key != "bytes"}


@pytest.fixture(scope="module")
def golden(seen: dict[str, dict[str, Any]], regenerate_golden: bool) -> dict[str, Any]:
    """The stored hashes; with --regenerate-golden those of this run."""
    if regenerate_golden:
        assert SAME_BITS
        lines = [f"{json.dumps(key)}: {json.dumps(pinned(row))}" for key, row in sorted(seen["simulated"].items())]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_every_case_is_pinned(golden: dict[str, Any]) -> None:
    """A method that is new in tests/methods.py, or a new recipe, gets its hashes by --regenerate-golden."""
    assert sorted(golden) == sorted(cases())


@pytest.mark.skipif(not SAME_BITS, reason="the hashes are those of x86-64")
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.long if c in for_long_runs() else ()) for c in cases()]
)
def test_simulated_islands_give_the_pinned_bits(
    case: str, seen: dict[str, dict[str, Any]], golden: dict[str, Any]
) -> None:
    assert pinned(seen["simulated"][case]) == golden[case]


@pytest.mark.parametrize("case", loops())
def test_processes_give_the_simulations_bits_and_bytes(case: str, seen: dict[str, dict[str, Any]]) -> None:
    wanted = seen["simulated"][case]
    for rank in range(ISLANDS):
        given = seen[f"gloo-{rank}"][case]
        assert given.get("rounds") == wanted["rounds"], f"on island {rank}: {given}"
        for what in ("islands", "bytes"):
            assert given[what] == {str(rank): wanted[what][str(rank)]}, f"{what} of island {rank}"


@pytest.mark.parametrize("case", left_behind())
def test_a_stored_run_goes_on_as_if_it_had_never_stopped(case: str, seen: dict[str, dict[str, Any]]) -> None:
    """Its weights; and the first one has an exchange in flight, so that a format which forgets it is seen."""
    given = seen["simulated"][case]
    assert given["resumed"] == given["whole"]
    (checkpoint,) = (LEFT / left_behind()[case].name / "checkpoints").iterdir()
    island = json.loads((checkpoint / "island-00000" / "island.json").read_text(encoding="utf-8"))
    assert bool(island["flights"]) == (case == "resumed streaming")
