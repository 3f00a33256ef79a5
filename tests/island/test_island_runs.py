"""`lowcomm train` with islands of several ranks, as torchrun starts it: what plain islands train, and exact resume.

2 islands x 2 ranks in real processes over gloo. Each of test_islands.py's properties has a finer test there; this one
sees that configuration, data, evaluation, checkpoints and summary fit islands of that kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lowcomm.cli import main
from lowcomm.run.ranks import Ended
from tests.support import runs

COMMON = ("--model.tied-embeddings", "False", "--seed", "3")
"""A pipeline keeps embeddings and output weights on different ranks."""
WIDE = ("--transport", "collective", "--islands", "2", "--island.size", "2")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    corpus = runs.write_corpus(tmp_path_factory.mktemp("corpus"))
    return f"{runs.write_recipe(tmp_path_factory.mktemp('recipe'), corpus)}:local"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, recipe: str) -> dict[str, Any]:
    """Summary of two islands of one rank on the same batches."""
    run_dir = tmp_path_factory.mktemp("plain")
    assert main(["simulate", recipe, *COMMON, "--islands", "2", "--run-dir", str(run_dir)]) == 0
    return runs.summary(run_dir)


def train(recipe: str, run_dir: Path, kind: str, *arguments: str) -> list[int]:
    """Exit codes of the four ranks."""
    command = ["train", recipe, *COMMON, *WIDE, "--island.kind", kind, "--run-dir", str(run_dir), *arguments]
    return runs.run_islands(command, 4, run_dir.with_suffix(".log"))


def assert_trained_alike(found: dict[str, Any], plain: dict[str, Any]) -> None:
    """fp32: only the order of sums differs, 1e-4 nats after 12 steps; counts are equal."""
    for key in ("status", "islands", "steps", "rounds", "tokens", "parameters", "parameters_trainable"):
        assert found[key] == plain[key], key
    assert found["val_loss"] == pytest.approx(plain["val_loss"], abs=1e-4)
    assert found["val_bpb"] == pytest.approx(plain["val_bpb"], abs=2e-4)


@pytest.mark.parametrize("kind", ["pipeline", "tensor", "zero3"])
def test_a_run_of_islands_of_two_ranks(tmp_path: Path, recipe: str, plain: dict[str, Any], kind: str) -> None:
    assert train(recipe, tmp_path / "run", kind) == [0] * 4, (tmp_path / "run.log").read_text(encoding="utf-8")
    assert_trained_alike(runs.summary(tmp_path / "run"), plain)


def test_the_command_asks_for_the_ranks_that_train(
    tmp_path: Path, recipe: str, plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without torchrun: four processes for two islands of the default kind, DDP. They are forked here, to save imports;
    that `run_ranks` starts processes is seen in run/test_resume.py and transport/test_listeners.py."""
    asked: list[tuple[int, list[str], dict[str, str]]] = []

    def run_ranks(count: int, arguments: Sequence[str], settings: Mapping[str, str], *_: object) -> Ended:
        asked.append((count, list(arguments), dict(settings)))
        codes = runs.run_islands(arguments, count, tmp_path / "log", dict(settings))
        return Ended(failed={}, codes=dict(enumerate(codes)), signal=None)

    monkeypatch.setattr("lowcomm.run.launch.run_ranks", run_ranks)
    command = ["train", recipe, *COMMON, *WIDE, "--run-dir", str(tmp_path / "run")]
    assert main(command) == 0, (tmp_path / "log").read_text(encoding="utf-8")
    ((count, _, settings),) = asked
    assert (count, settings["GLOO_SOCKET_IFNAME"], settings["OMP_NUM_THREADS"]) == (4, "lo", "1")
    assert_trained_alike(runs.summary(tmp_path / "run"), plain)


def test_fsdp_stopped_inside_a_round_and_resumed(tmp_path: Path, recipe: str, plain: dict[str, Any]) -> None:
    """After 6 of 12 steps, inside the second round: afterwards every rank's files are those of a whole run."""
    codes = train(recipe, tmp_path / "whole", "fsdp")
    assert codes == [0] * 4, (tmp_path / "whole.log").read_text(encoding="utf-8")
    assert_trained_alike(runs.summary(tmp_path / "whole"), plain)
    half = train(recipe, tmp_path / "halves", "fsdp", "--checkpoint.stop-at-step", "6")
    assert half == [3] * 4, (tmp_path / "halves.log").read_text(encoding="utf-8")
    assert (runs.summary(tmp_path / "halves")["status"], runs.summary(tmp_path / "halves")["steps"]) == ("stopped", 6)
    rest = train(recipe, tmp_path / "halves", "fsdp", "--resume")
    assert rest == [0] * 4, (tmp_path / "halves.log").read_text(encoding="utf-8")
    expected = runs.outcome(tmp_path / "whole")
    assert len({key.split("/")[0] for key in expected if key.startswith("island-")}) == 4
    runs.assert_same(runs.outcome(tmp_path / "halves"), expected)
