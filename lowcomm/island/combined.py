"""Several optimizers as one, so that a step hook, a checkpoint and a learning-rate schedule see one."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from lowcomm.types import ConfigError


class Combined(Optimizer):
    """Steps its parts in order. Groups and state are those of the parts, held here; parameters lie in one part each.

    Raises ConfigError without a part. Reduces to: its part, with one.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        if not parts:
            raise ConfigError("inner.optimizer = Combined() has no part: there is no trainable parameter to optimize")
        self.parts = list(parts)
        self._counts = [len(part.param_groups) for part in self.parts]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of every part."""
        self._share()  # load_state_dict puts new groups and a new state here
        for part in self.parts:
            part.step()

    def _share(self) -> None:
        first = 0
        for part, count in zip(self.parts, self._counts, strict=True):
            part.state = self.state
            part.param_groups = self.param_groups[first : first + count]
            first += count
