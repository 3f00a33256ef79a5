"""The outer arrow: an outer optimizer is a plain `torch.optim.Optimizer` whose `p.grad` is the aggregated Delta."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowcomm.types import require


class Outer(ABC):
    """The hyper-parameters of an outer optimizer: a frozen dataclass that recipes hold and the command line edits."""

    @abstractmethod
    def build(self, params: Sequence[Tensor]) -> Optimizer:
        """The optimizer over `params`: fp32 global weights, whose `.grad` the sync sets to the aggregated Delta."""

    @abstractmethod
    def check(self) -> None:
        """Raise ConfigError for a hyper-parameter out of range."""


class DeltaOptimizer(Optimizer):
    """Base of the outer optimizers that torch does not have: one update for each tensor whose `p.grad` is a Delta."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One outer step; closures are not supported (the Delta is already there)."""
        if closure is not None:
            raise ValueError("an outer optimizer takes no closure: set p.grad to the aggregated Delta")
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, p.grad, group)

    @abstractmethod
    def update(self, p: Tensor, delta: Tensor, group: dict[str, Any]) -> None:
        """Move p in place; its state is `self.state[p]`."""


def check_lr(name: str, lr: float) -> None:
    """An outer learning rate must be finite and positive."""
    require(0 < lr < float("inf"), f"{name}.lr", lr, "a finite number above 0", "0.7 suits DiLoCo, 1.0 averaging")


def check_unit(name: str, value: float) -> None:
    """A decay such as a momentum or a beta lies in [0, 1)."""
    require(0 <= value < 1, name, value, "0 <= value < 1", "0.9 is usual, 0 switches it off")
