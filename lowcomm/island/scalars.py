"""Inner optimizers whose steps are made of a few bytes from every island instead of averaged gradients.

The extension point for methods without a backward pass: with a schedule of data-parallel steps (`EveryStep`), a sync
gathers the `row` of each island where it would average gradients, and all islands `hear` the same table before they
step. There is nothing to average, so no gradient buffer is made, and the global weights of a sync are the weights
themselves. Everything else of a data-parallel run is as it was: hooks, digests, checkpoints, counted bytes.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor
from torch.optim import Optimizer


class ScalarOptimizer(Optimizer):
    """`step` must be a pure function of the weights, its state and the table heard: islands stay equal bit for bit."""

    row: Tensor | None = None
    """What this island sends for the coming step: uint8, 1-D, on the CPU, of one size on every island."""

    @property
    @abstractmethod
    def row_bytes(self) -> int:
        """Bytes of a row."""

    @abstractmethod
    def hear(self, rows: Tensor) -> None:
        """Take the rows of all islands in island order, uint8 [islands, size], for the step that comes next."""
