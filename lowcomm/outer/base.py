"""The outer arrow: an outer optimizer is a plain `torch.optim.Optimizer` whose `p.grad` is the aggregated Delta."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

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


def check_lr(name: str, lr: float) -> None:
    """An outer learning rate must be finite and positive."""
    require(0 < lr < float("inf"), f"{name}.lr", lr, "a finite number above 0", "0.7 suits DiLoCo, 1.0 averaging")


def check_unit(name: str, value: float) -> None:
    """A decay such as a momentum or a beta lies in [0, 1)."""
    require(0 <= value < 1, name, value, "0 <= value < 1", "0.9 is usual, 0 switches it off")
