"""The inner optimizer and its learning-rate schedule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from lowcomm.island.lr import LR_SCHEDULES, LrSchedule
from lowcomm.types import ConfigError, require


class Inner(ABC):
    """The hyper-parameters of an inner optimizer: a frozen dataclass."""

    lr: float
    shards: ClassVar[Literal["flat", "spread", "none"]] = "flat"
    """What it can update in parts: 1-D pieces of tensors (ZeRO), DTensors (FSDP2, tensor parallel), or neither."""

    @abstractmethod
    def build(self, model: nn.Module) -> Optimizer:
        """The optimizer over the model's trainable parameters."""

    @abstractmethod
    def check(self) -> None:
        """Raise ConfigError for a hyper-parameter out of range."""


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of the trainable parameters: matrices with weight decay, vectors (norms, biases) without."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


def check_rates(lr: float, decays: Mapping[str, float], weight_decay: float) -> None:
    """Raise ConfigError unless the learning rate, the decays of moments (by name) and the weight decay are in range."""
    ok = math.isfinite(lr) and lr > 0
    require(ok, "inner.optimizer.lr", lr, "a finite number above 0", "3e-3 suits small models")
    for name, value in decays.items():
        require(0 <= value < 1, f"inner.optimizer.{name}", value, "0 <= value < 1", "0.9 and 0.95 are usual")
    ok = math.isfinite(weight_decay) and weight_decay >= 0
    require(ok, "inner.optimizer.weight_decay", weight_decay, "a finite number, 0 or more", "0.1 is usual")


def load_pytorch_optimizer() -> ModuleType:
    """The package with Lion and SOAP; raises ConfigError if it is not installed."""
    try:
        import pytorch_optimizer
    except ImportError as error:
        raise ConfigError(
            "inner.optimizer needs the package pytorch-optimizer, which is not installed. "
            "Fix: pip install 'lowcomm[optimizers]'"
        ) from error
    return pytorch_optimizer


@dataclass(frozen=True, kw_only=True)
class AdamW(Inner):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101); no weight decay on vectors (norms, biases)."""

    lr: float = 3e-3
    """Peak inner learning rate (no unit)."""
    beta1: float = 0.9
    """Decay of the first moment, 0 <= beta1 < 1."""
    beta2: float = 0.95
    """Decay of the second moment, 0 <= beta2 < 1."""
    weight_decay: float = 0.1
    """Decoupled weight decay on matrices (no unit)."""

    def build(self, model: nn.Module) -> Optimizer:
        groups = decay_groups(model, self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2), fused=True)

    def check(self) -> None:
        check_rates(self.lr, {"beta1": self.beta1, "beta2": self.beta2}, self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class InnerConfig:
    """How an island trains between syncs."""

    optimizer: Inner = field(default_factory=AdamW)
    lr_schedule: LrSchedule = "cosine"
    """Learning rate after the warm-up: cosine, linear, constant, wsd (stable, then linear decay) or inverse_sqrt."""
    warmup_fraction: float = 0.05
    """Part of all steps in which the learning rate rises linearly from 0 to its peak."""
    decay_fraction: float = 0.2
    """wsd: part of all steps, at their end, in which the learning rate falls."""
    min_lr_fraction: float = 0.1
    """Lowest learning rate after the warm-up, as a fraction of the peak; a constant one never falls."""
    clip_norm: float | None = 1.0
    """Gradient norm above which gradients are scaled down, inside the island; None: no clipping."""
    accumulation: int = 1
    """Micro-batches per inner step and island (gradient accumulation)."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range."""
        self.optimizer.check()
        legal = f"one of {', '.join(LR_SCHEDULES)}"
        require(self.lr_schedule in LR_SCHEDULES, "inner.lr_schedule", self.lr_schedule, legal, "cosine is usual")
        decay, warmup = self.decay_fraction, self.warmup_fraction
        require(0 < decay <= 1, "inner.decay_fraction", decay, "above 0, to 1", "0.1 to 0.2 is usual")
        fits = self.lr_schedule != "wsd" or decay + warmup <= 1
        legal = f"at most {1 - warmup:g}, what warmup_fraction leaves"
        require(fits, "inner.decay_fraction", decay, legal, "shorten one of them")
        for name in ("warmup_fraction", "min_lr_fraction"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"inner.{name}", value, "0 to 1", "0.05 and 0.1 are usual")
        clip = self.clip_norm
        require(clip is None or clip > 0, "inner.clip_norm", clip, "above 0, or None for off", "1.0 is usual")
        require(self.accumulation >= 1, "inner.accumulation", self.accumulation, "1 or more", "1 is no accumulation")
