"""Runs that some islands attack on purpose, to see what a rule is worth; each needs --sync.allow-attack."""

from __future__ import annotations

from dataclasses import replace

from lowcomm.aggregate import NNM, TrimmedMean
from lowcomm.attack import ALIE, Attack, CollectiveAction, InnerProduct, LabelNoise, SignFlip
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import Nesterov


def smoke() -> RunConfig:
    """One island of six sends its Delta turned round, ten times as large; the rule outvotes it: seconds on a CPU."""
    return replace(_run("smoke", SignFlip(islands=(5,), factor=10.0)), steps=48)


def alie() -> RunConfig:
    """A little is enough (arXiv 1902.06156): two of eight hide within the spread of the others."""
    return _eight("alie", ALIE(islands=(6, 7)))


def inner_product() -> RunConfig:
    """Fall of empires (arXiv 1903.03936): two of eight send half of the others' mean, turned round."""
    return _eight("inner-product", InnerProduct(islands=(6, 7)))


def label_noise() -> RunConfig:
    """Two of eight train on random targets."""
    return _eight("label-noise", LabelNoise(islands=(6, 7)))


def collective() -> RunConfig:
    """Collective action (arXiv 2302.04262): two of eight plant a signal in their own text."""
    return _eight("collective", CollectiveAction(islands=(6, 7)))


def _run(name: str, attack: Attack) -> RunConfig:
    return RunConfig(
        name=f"attack-{name}",
        islands=6,
        steps=96,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(
            every=16, outer=Nesterov(lr=0.7, momentum=0.6), aggregator=NNM() | TrimmedMean(), attack=attack
        ),
        checkpoint=CheckpointConfig(every_rounds=2),
    )


def _eight(name: str, attack: Attack) -> RunConfig:
    base = _run(name, attack)
    rule = NNM(faulty=2) | TrimmedMean(faulty=2)
    return replace(base, islands=8, sync=replace(base.sync, aggregator=rule))
