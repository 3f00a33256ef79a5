"""Local objectives: what a method adds to the gradient of every inner step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """A frozen dataclass of settings; what it remembers is kept by the sync (`lowcomm/corrections.py`)."""

    sends: ClassVar[bool] = False
    """Whether it has control variates, which cross the link beside the Delta."""

    @abstractmethod
    def correct(self, grad: Tensor, local: Tensor, start: Tensor, control: Tensor | None) -> None:
        """Change one gradient in place, after clipping, just before the inner optimizer reads it.

        local: the weight; start: the global weight at the beginning of the round, fp32; control: c - c_k of a method
        that sends control variates, fp32. All of one shape.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise ConfigError for a setting out of range."""
