"""An island under tensor parallelism: each rank syncs its shard of what is cut, and rows of what is whole on all ranks.

Cut parameters are DTensors, whose shard here is what the inner optimizer updates. The others (norms, biases of row-wise
maps, tied embeddings) are equal on the island's ranks: each syncs the rows that a DDP island's rank would, so that each
element crosses the link once, and hands them to the others on the fast links.
What it reduces to: without a cut parameter, a DDP island.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowcomm.island.dtensor import is_spread, local
from lowcomm.island.mesh import Mesh
from lowcomm.island.part import Part, rows_held, spread
from lowcomm.types import ConfigError


class TensorPart(Part):
    """Shards and rows of a model that was cut over this island's ranks, as `parallelize_module` does it."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = self._mesh = mesh
        self._whole: dict[str, nn.Parameter] = {}

    def held(self, model: nn.Module) -> dict[str, Tensor]:
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._whole = {name: p for name, p in trainable.items() if not is_cut(name, p, self._mesh)}
        parts = {name: self._part(name, p) for name, p in trainable.items()}
        return {name: t for name, t in parts.items() if t.numel()}

    def gradient(self, name: str, held: Tensor, parameter: Tensor) -> Tensor:
        return self._part(name, super().gradient(name, held, parameter))

    @torch.no_grad()
    def written(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self._whole:
                self._spread(self._whole[name])

    @torch.no_grad()
    def gradients_written(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self._whole:
                parameter = self._whole[name]
                self._spread(super().gradient(name, parameter, parameter))

    def _part(self, name: str, tensor: Tensor) -> Tensor:
        here = local(tensor)
        if name not in self._whole:
            return here
        rows = here if here.ndim else here.view(1)
        return rows[rows_held(rows.shape[0], self._mesh.size, self._mesh.rank)]

    def _spread(self, tensor: Tensor) -> None:
        here = local(tensor)
        spread(here if here.ndim else here.view(1), self._mesh)


def is_cut(name: str, parameter: Tensor, mesh: Mesh) -> bool:
    """Whether the island's ranks hold shards of a parameter, and not each the whole.

    Raises ConfigError for one that is spread in another way.
    """
    if not is_spread(parameter):
        return False
    from torch.distributed.tensor import DTensor, Replicate, Shard

    assert isinstance(parameter, DTensor)
    placements, ranks = parameter.placements, parameter.device_mesh.size()
    if ranks != mesh.size or len(placements) != 1 or not isinstance(placements[0], Replicate | Shard):
        raise ConfigError(
            f"island = TensorPart(mesh) is not allowed: parameter {name} is placed as {placements} over {ranks} ranks, "
            f"and an island has {mesh.size}. Fix: parallelize_module(model, mesh.device_mesh(), ...)"
        )
    return isinstance(placements[0], Shard)
