"""What benchmarks/fed_peft.py runs: the recipes of recipes/fed_peft.py under privacy, and on clients that are alike."""

from __future__ import annotations

from dataclasses import replace

from lowcomm.config import RunConfig
from lowcomm.data import Iid, Packages
from lowcomm.privacy import ExampleGaussian
from recipes import fed_peft

NOISE, CLIP = 1.0, 0.2


def _private(base: RunConfig) -> RunConfig:
    mechanism = ExampleGaussian(clip=CLIP, noise_multiplier=NOISE)
    data = replace(base.data, batch_size=32)
    return replace(base, data=data, steps=48, sync=replace(base.sync, privacy=mechanism, quorum=1.0))


def _alike(base: RunConfig) -> RunConfig:
    source = Packages(names=("numpy", "rich", "torch", "transformers"), max_bytes_each=200_000, held_out=0.3)
    return replace(base, data=replace(base.data, source=source, sharding="iid", partition=Iid()))


def full_alike() -> RunConfig:
    """full, clients that are alike."""
    return _alike(fed_peft.full())


def full_private() -> RunConfig:
    """full, example-level noise."""
    return _private(fed_peft.full())


def lora_alike() -> RunConfig:
    """lora, clients that are alike."""
    return _alike(fed_peft.lora())


def lora_private() -> RunConfig:
    """lora, example-level noise."""
    return _private(fed_peft.lora())


def dora_alike() -> RunConfig:
    """dora, clients that are alike."""
    return _alike(fed_peft.dora())


def dora_private() -> RunConfig:
    """dora, example-level noise."""
    return _private(fed_peft.dora())


def ia3_alike() -> RunConfig:
    """ia3, clients that are alike."""
    return _alike(fed_peft.ia3())


def ia3_private() -> RunConfig:
    """ia3, example-level noise."""
    return _private(fed_peft.ia3())


def prompt_alike() -> RunConfig:
    """prompt, clients that are alike."""
    return _alike(fed_peft.prompt())


def prompt_private() -> RunConfig:
    """prompt, example-level noise."""
    return _private(fed_peft.prompt())


def heads_alike() -> RunConfig:
    """heads, clients that are alike."""
    return _alike(fed_peft.heads())


def heads_private() -> RunConfig:
    """heads, example-level noise."""
    return _private(fed_peft.heads())


def bitfit_alike() -> RunConfig:
    """bitfit, clients that are alike."""
    return _alike(fed_peft.bitfit())


def bitfit_private() -> RunConfig:
    """bitfit, example-level noise."""
    return _private(fed_peft.bitfit())
