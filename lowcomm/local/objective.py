"""Local objectives: what a method adds to the gradient of every inner step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from lowcomm.types import Delta


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """A frozen dataclass of settings; what it remembers is kept by the sync (`lowcomm/hooks/local_objective.py`)."""

    sends: ClassVar[bool] = False
    """Whether it has control variates, which cross the link beside the Delta."""

    anchored: ClassVar[bool] = True
    """Whether it looks at the weights that a round began with, which must then be the global ones."""

    passes: ClassVar[int] = 1
    """Backward passes of an inner step: more than one are taken by the island, so by `lowcomm train` only."""

    @abstractmethod
    def correct(self, grads: Delta, local: Delta, start: Delta, controls: Delta) -> None:
        """Change gradients in place, after clipping, just before the inner optimizer reads them.

        A name that is deleted from `grads` has no gradient in this step: the inner optimizer passes its parameter over.
        By name, of one shape each. grads: of the parameters that have one in this step; local: all weights; start: the
        global weights at the beginning of the round, fp32; controls: c - c_k of a method that sends control variates,
        fp32, else nothing.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise ConfigError for a setting out of range."""

    def check_names(self, names: Collection[str]) -> None:  # noqa: B027  # nothing to check is a good default
        """Raise ConfigError for trained parameters that it can't work with."""
