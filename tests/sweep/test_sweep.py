"""`lowcomm sweep`: cells that are not repeated, equal tokens, a law through them, bad input on one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lowcomm.cli import main
from lowcomm.model import ModelConfig, build_model
from lowcomm.sweep import grid as sweep_module
from lowcomm.sweep.command import law_of
from lowcomm.types import ConfigError
from tests.support import runs


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    corpus = runs.write_corpus(tmp_path_factory.mktemp("corpus"))
    return runs.write_recipe(tmp_path_factory.mktemp("recipe"), corpus)


def arguments(recipe: Path, out: Path, *more: str) -> list[str]:
    grid = ("--sizes", "16,24", "--hold-out", "32", "--islands", "1,2", "--every", "2,3", "--batch", "2")
    return ["sweep", f"{recipe}:local", *grid, "--out", str(out), "--steps", "6", *more]


@pytest.fixture(scope="module")
def swept(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("swept")
    assert main(arguments(recipe, out)) == 0
    return out


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "sweep.json").read_text(encoding="utf-8"))


def test_a_sweep_end_to_end(swept: Path) -> None:
    found = result(swept)
    rows = found["rows"]
    assert len(rows) == 3 * 2 * 2
    assert {(r["size"], r["islands"], r["H"]) for r in rows if not r["held_out"]} == {
        (s, m, h) for s in ("16", "24") for m in (1, 2) for h in (2, 3)
    }
    assert {r["tokens"] for r in rows} == {6 * 2 * 32}, "every run sees the same tokens"
    assert sorted({r["parameters"] for r in rows}) == sorted(r["parameters"] for r in rows)[::4]
    assert set(found["fit"]["constants"]) == {"A", "alpha", "beta", "gamma"}
    assert found["fit"]["runs"] == 8
    assert [r["size"] for r in found["held_out"]] == ["32"] * 4
    for r in found["held_out"]:
        assert r["low"] <= r["predicted"] <= r["high"]
        assert r["inside"] == (r["low"] <= r["measured"] <= r["high"])
    config = json.loads((swept / "24-M2-H3-seed0" / "config.json").read_text(encoding="utf-8"))
    assert (config["batched"], config["data"]["batch_size"], config["sync"]["every"]) == (True, 1, 3)
    alone = json.loads((swept / "24-M1-H3-seed0" / "config.json").read_text(encoding="utf-8"))
    assert (alone["batched"], alone["data"]["batch_size"]) == (False, 2)


def test_what_is_done_is_not_repeated(swept: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    original = sweep_module.run_cell

    def counted(cell: sweep_module.SweepCell) -> int:
        ran.append(cell.name)
        return original(cell)

    monkeypatch.setattr("lowcomm.sweep.command.run_cell", counted)
    before = result(swept)
    assert main(arguments(recipe, swept)) == 0
    assert ran == []
    assert result(swept)["fit"] == before["fit"]
    (swept / "16-M2-H2-seed0" / "summary.json").unlink()  # as if it had been killed at the end
    assert main(arguments(recipe, swept)) == 0
    assert ran == ["16-M2-H2-seed0"]
    losses = [[r["val_loss"] for r in found["rows"]] for found in (before, result(swept))]
    assert losses[0] == losses[1]


def test_an_unfinished_cell_goes_on(recipe: Path, tmp_path: Path, swept: Path) -> None:
    """One that was stopped with everything saved is resumed; the same bits as one that was never stopped."""
    stop = ("--checkpoint.stop-at-step", "3")
    assert main(arguments(recipe, tmp_path, *stop)) == 3
    cell = tmp_path / "16-M1-H2-seed0"
    assert runs.summary(cell)["status"] == "stopped"
    assert main(arguments(recipe, tmp_path)) == 0
    assert any(m["event"] == "note" and "resumed" in m["note"] for m in runs.metrics(cell))
    name = "16-M1-H2-seed0"
    assert runs.summary(cell)["weights_sha256"] == runs.summary(swept / name)["weights_sha256"]


def test_dry_run_prints_cells_and_starts_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(recipe, out, "--dry-run")) == 0
    printed = capsys.readouterr().out
    assert "16-M2-H3-seed0" in printed and "32-M1-H2-seed0" in printed and "12 runs, 0 of them done" in printed
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--sizes", "17"), "model.width = 17 is not allowed: a multiple of 8"),
        (("--sizes", "huge"), "sizes = 'huge' is not allowed"),
        (("--sizes", ""), "sizes = () is not allowed"),
        (("--sizes", "16,16"), "sizes = ('16', '16') is not allowed: each value once"),
        (("--hold-out", "24"), "hold_out = ['24'] is not allowed"),
        (("--islands", "0,1"), "islands = 0 is not allowed"),
        (("--islands", "1,two"), "islands = '1,two' is not allowed: whole numbers"),
        (("--islands", "1,4"), "batch = 2 is not allowed: a multiple of 4"),
        (("--every", "0"), "sync.every = 0 is not allowed"),
        (("--seeds", "-1"), "seed = -1 is not allowed"),
        (("--confidence", "1.5"), "1.5 is not above 0 and below 1"),
        (("--confidence", "high"), "high is not above 0 and below 1"),
        (("--seed", "3"), "--seed is set by the sweep for each cell. Fix: use --seeds"),
        (("--no-batched",), "--batched is set by the sweep"),
        (("--data.batch_size=4",), "--data.batch-size is set by the sweep"),
        (("--nonsense", "3"), "--nonsense"),
        (("--data.seq-len", "100000"), "data.seq_len is 100000; legal: at most"),
    ],
)
def test_bad_input_is_one_line(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], words: str
) -> None:
    out = tmp_path / "out"
    assert main(arguments(recipe, out, *more)) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("lowcomm: error: ") and printed.err.count("\n") == 1
    assert words in printed.err and printed.out == ""
    assert not out.exists()


def test_results_of_another_sweep_are_refused(recipe: Path, swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(recipe, swept, "--data.seq-len", "16")) == 2
    printed = capsys.readouterr().err
    assert "cell 16-M1-H2-seed0 was run before" in printed and "--out" in printed and printed.count("\n") == 1


def test_too_few_runs_give_rows_without_a_fit() -> None:
    row = {"held_out": False, "parameters": 10, "islands": 1, "H": 4, "val_loss": 2.0}
    found = law_of([row], 0.95)
    assert found["fit"] is None and "too few" in found["no_fit"] and found["held_out"] == []


def test_width_changes_the_size_and_nothing_else() -> None:
    def parameters(config: ModelConfig) -> int:
        model = build_model(config, vocab_size=260, max_tokens=32, seed=0, eos_id=0)
        return sum(p.numel() for p in model.parameters())

    nano = parameters(ModelConfig(preset="nano"))
    assert parameters(ModelConfig(preset="nano", width=64)) == nano
    assert parameters(ModelConfig(preset="nano", width=32)) < nano / 3
    with pytest.raises(ConfigError, match=r"model\.width = 30 is not allowed: a multiple of 8"):
        ModelConfig(preset="nano", width=30).check()
