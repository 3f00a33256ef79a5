"""An island of several ranks that all hold the whole model: DDP inside.

Each rank syncs the rows of every tensor that FSDP2 would give it, so that the island's traffic is that of one replica
and every rank's link carries its share; then the ranks of the island hand each other what they got, on the fast links.
What it reduces to: with one rank, a plain island.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowcomm.island.mesh import Mesh
from lowcomm.island.part import Part, rows_held, spread


class DDPPart(Part):
    """Rows of each tensor of a model that is whole on every rank."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = self._mesh = mesh
        self._parameters: dict[str, nn.Parameter] = {}

    def held(self, model: nn.Module) -> dict[str, Tensor]:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        cut = {name: self._rows(p) for name, p in self._parameters.items()}
        return {name: t for name, t in cut.items() if t.numel()}

    def gradient(self, name: str, held: Tensor, parameter: Tensor) -> Tensor:
        return self._rows(super().gradient(name, held, parameter))

    @torch.no_grad()
    def written(self, names: Sequence[str]) -> None:
        for name in names:
            self._spread(self._parameters[name].detach())

    @torch.no_grad()
    def gradients_written(self, names: Sequence[str]) -> None:
        for name in names:
            self._spread(super().gradient(name, self._parameters[name], self._parameters[name]))

    def _rows(self, tensor: Tensor) -> Tensor:
        flat = tensor.detach()
        if flat.ndim == 0:
            flat = flat.view(1)
        return flat[rows_held(flat.shape[0], self._mesh.size, self._mesh.rank)]

    def _spread(self, tensor: Tensor) -> None:
        spread(tensor if tensor.ndim else tensor.view(1), self._mesh)
