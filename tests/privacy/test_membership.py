"""Membership inference: the figures' properties, and a run that writes them."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch

from lowcomm.aggregate import Mean
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig, TextFiles
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import SGD
from lowcomm.privacy import ExampleGaussian
from lowcomm.privacy.membership_inference import attacks, auc, tpr_at_fpr
from lowcomm.trainer import train


def test_auc_of_equal_separable_and_tied_scores() -> None:
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert auc(scores, scores) == 0.5
    assert auc(scores + 100, scores) == 1.0
    assert auc(scores - 100, scores) == 0.0
    assert auc(torch.tensor([1.0]), torch.tensor([1.0, 0.0])) == 0.75
    other = torch.randn(40, generator=torch.Generator().manual_seed(1))
    pairs = (scores[:, None] > other[None]).double().mean()
    assert auc(scores, other) == pytest.approx(float(pairs))
    assert auc(scores.double().exp(), other.double().exp()) == auc(scores, other)


def test_true_positives_at_one_percent() -> None:
    outside = torch.arange(200.0)
    assert tpr_at_fpr(torch.tensor([196.0, 197.0, 197.5, 300.0]), outside) == 0.5  # two of 200 may be above: 198, 199
    assert tpr_at_fpr(outside[:8], outside[:8]) == 0.0
    assert tpr_at_fpr(outside + 1000, outside) == 1.0


def test_calibration_takes_out_how_hard_a_sequence_is() -> None:
    hard = torch.linspace(0, 50, 20)
    found = attacks((hard, hard - 1), (hard, hard))
    assert found["calibrated"] == {"auc": 1.0, "auc_error": 0.0, "tpr_at_1pct_fpr": 1.0}
    assert found["loss"]["auc"] < 0.6


def test_text_that_differs_is_told_apart_without_any_training() -> None:
    """Files held out whole: the loss attack "finds" members of a model that saw none, and `untuned` says so."""
    easy, hard = torch.linspace(1, 2, 20), torch.linspace(1.5, 2.5, 30)
    found = attacks((easy, easy), (hard, hard))
    assert found["untuned"] == found["loss"] and found["loss"]["auc"] > 0.8
    assert found["calibrated"]["auc"] == 0.5
    learnt = attacks((easy, easy - 2), (hard, hard))
    assert learnt["untuned"] == found["untuned"] and learnt["calibrated"]["auc"] == 1.0


@pytest.mark.parametrize("scores", [torch.zeros(0), torch.tensor([float("nan")])])
def test_no_scores_are_refused(scores: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="at least one is needed"):
        auc(scores, torch.zeros(1))


def test_a_run_writes_its_membership_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(3)
    for i in range(28):
        path = tmp_path / "corpus" / "ab"[i % 2] / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(draw.choices("abcdefgh", k=96)), encoding="utf-8")
    source = TextFiles(glob=str(tmp_path / "corpus" / "*" / "*.txt"))
    plain = RunConfig(
        islands=2,
        steps=10,
        threads=1,
        transport="simulated",
        device="cpu",
        run_dir=tmp_path / "plain",
        tensorboard=False,
        data=DataConfig(
            source=source,
            sharding="by_folder",
            seq_len=32,
            batch_size=4,
            validation_sequences=64,
            validation_fraction=0.5,
        ),
        model=ModelConfig(preset="nano"),
        inner=InnerConfig(optimizer=AdamW(lr=1e-2, weight_decay=0.0)),
        sync=SyncConfig(every=5, outer=SGD(lr=1.0), aggregator=Mean(by="uniform")),
        eval=EvalConfig(clients=True, membership=True),
        checkpoint=CheckpointConfig(export=False),
    )
    assert train(plain) == 0
    found = json.loads((tmp_path / "plain" / "clients.json").read_text(encoding="utf-8"))["membership"]
    assert set(found) == {"loss", "calibrated", "untuned"}
    aucs = {k: f"{figures['auc']:.3f} +- {1.96 * figures['auc_error']:.3f}" for k, figures in found.items()}
    said = f"loss AUC {aucs['loss']} (of the untuned model {aucs['untuned']}), calibrated AUC {aucs['calibrated']}"
    assert f"membership inference: {said}; 0.5 is guessing" in capsys.readouterr().out
    for figures in found.values():
        assert set(figures) == {"auc", "auc_error", "tpr_at_1pct_fpr"}
        assert all(0 <= value <= 1 for value in figures.values())


def overfitting(corpus: Path, run_dir: Path) -> RunConfig:
    """Two clients with little text, which they read many times."""
    return RunConfig(
        name="overfitting",
        islands=2,
        steps=120,
        transport="simulated",
        threads=1,
        tensorboard=False,
        run_dir=run_dir,
        data=DataConfig(
            source=TextFiles(glob=str(corpus / "*" / "*.txt")),
            sharding="by_folder",
            seq_len=16,
            batch_size=8,
            validation_fraction=0.5,
        ),
        model=ModelConfig(preset="nano"),
        inner=InnerConfig(optimizer=AdamW(lr=1e-2, weight_decay=0.0), warmup_fraction=0.0),
        sync=dataclasses.replace(
            RunConfig().sync, every=20, outer=SGD(lr=1.0), aggregator=Mean(by="uniform"), quorum=1.0
        ),
        eval=EvalConfig(clients=True, membership=True),
        checkpoint=CheckpointConfig(export=False),
    )


def write_noise(folder: Path) -> Path:
    """Random letters: what is learnt of them is learnt by heart."""
    letters = random.Random(0)
    for client in "ab":
        (folder / client).mkdir(parents=True)
        for k in range(8):
            text = "".join(letters.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(170))
            (folder / client / f"{k}.txt").write_text(text, encoding="utf-8")
    return folder


def test_an_overfitted_model_tells_its_members_and_noise_hides_them(tmp_path: Path) -> None:
    corpus = write_noise(tmp_path / "corpus")
    plain = overfitting(corpus, tmp_path / "plain")
    mechanism = ExampleGaussian(clip=0.1, noise_multiplier=30.0, seed=0)
    private = overfitting(corpus, tmp_path / "private")
    private = dataclasses.replace(private, sync=dataclasses.replace(private.sync, privacy=mechanism))
    found = {}
    for config in (plain, private):
        assert train(config) == 0
        found[config.directory.name] = json.loads((config.directory / "clients.json").read_text(encoding="utf-8"))
    known, hidden = (found[name]["membership"] for name in ("plain", "private"))
    assert known["untuned"] == hidden["untuned"] and abs(known["untuned"]["auc"] - 0.5) < 0.2
    assert known["loss"]["auc"] > 0.9 and known["calibrated"]["auc"] > 0.9
    assert abs(hidden["calibrated"]["auc"] - 0.5) < 0.2  # some forty sequences a side: one standard deviation is 0.07
    assert known["calibrated"]["tpr_at_1pct_fpr"] > hidden["calibrated"]["tpr_at_1pct_fpr"] + 0.2
