"""Telling members by their loss: the attack's measures, and what noise does to it in a run that overfits."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowcomm.aggregate import Mean
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, check
from lowcomm.data import DataConfig, TextFiles
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import SGD
from lowcomm.privacy import ExampleGaussian
from lowcomm.privacy.membership_inference import area_under_curve, hits_at
from lowcomm.trainer import train
from lowcomm.types import ConfigError
from tests import runs

scores = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=30)


@given(members=scores, others=scores)
def test_the_area_is_the_share_of_pairs_in_the_right_order(members: list[float], others: list[float]) -> None:
    pairs = [(m > o) + (m == o) / 2 for m in members for o in others]
    assert area_under_curve(members, others) == pytest.approx(sum(pairs) / len(pairs))
    assert area_under_curve(others, members) == pytest.approx(1 - area_under_curve(members, others))
    up = [[math.exp(v / 7) for v in side] for side in (members, others)]
    assert area_under_curve(*up) == pytest.approx(area_under_curve(members, others))
    assert hits_at(*up) == hits_at(members, others)


@given(scores)
def test_equal_groups_give_a_half_and_apart_ones_give_one(members: list[float]) -> None:
    assert area_under_curve(members, members) == 0.5
    assert hits_at(members, members) == 0.0
    apart = [v + 100 for v in members]
    assert area_under_curve(apart, members) == hits_at(apart, members) == 1.0


def test_hits_allow_so_many_false_alarms() -> None:
    others = [float(k) for k in range(100)]
    assert hits_at([98.5, 97.5, 99.5], others, 0.01) == pytest.approx(2 / 3)
    assert hits_at([98.5, 97.5, 99.5], others, 0.02) == 1.0
    with pytest.raises(ValueError, match="empty"):
        area_under_curve([], others)


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
    import random

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
    mechanism = ExampleGaussian(clip=0.1, noise_multiplier=4.0, seed=0)
    private = overfitting(corpus, tmp_path / "private")
    private = dataclasses.replace(private, sync=dataclasses.replace(private.sync, privacy=mechanism))
    found = {}
    for config in (plain, private):
        assert train(config) == 0
        found[config.directory.name] = json.loads((config.directory / "clients.json").read_text(encoding="utf-8"))
    known, hidden = (found[name]["membership"] for name in ("plain", "private"))
    assert known["loss_auc"] > 0.9 and known["calibrated_auc"] > 0.9
    assert abs(hidden["calibrated_auc"] - 0.5) < 0.2  # some thirty sequences a side: one standard deviation is 0.07
    assert known["calibrated_tpr_at_1pct_fpr"] > hidden["calibrated_tpr_at_1pct_fpr"]


def test_the_check_needs_clients(tmp_path: Path) -> None:
    config = overfitting(runs.write_corpus(tmp_path), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"eval\.membership = True is not allowed.*Fix: pass --eval\.clients"):
        check(dataclasses.replace(config, eval=EvalConfig(membership=True)), 2)
