"""An island under FSDP2 (`fully_shard`): each rank syncs its own shard of every DTensor with its peers.

No rank gathers anything: the shard that a rank holds is the one that its inner optimizer updates, in the parameter's
own dtype (fp32 under FSDP2's mixed precision, whose bf16 copies live for a forward pass only).
"""

from __future__ import annotations

from torch import Tensor, nn

from lowcomm.island.dtensor import local
from lowcomm.island.mesh import Mesh
from lowcomm.island.part import Part
from lowcomm.types import ConfigError


class FSDPPart(Part):
    """The local shards of a model on which `fully_shard` was called with a mesh of this island's ranks."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = self._mesh = mesh

    def held(self, model: nn.Module) -> dict[str, Tensor]:
        shards: dict[str, Tensor] = {}
        for name, p in model.named_parameters():
            if p.requires_grad:
                shard = local_shard(name, p, self._mesh)
                if shard.numel():
                    shards[name] = shard
        return shards

    def gradient(self, name: str, held: Tensor, parameter: Tensor) -> Tensor:
        return local(super().gradient(name, held, parameter))


def local_shard(name: str, parameter: Tensor, mesh: Mesh) -> Tensor:
    """This rank's shard of a parameter. Raises ConfigError if it is not sharded over the island's ranks, or in a way
    that pads shards."""
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(parameter, DTensor):
        raise ConfigError(
            f"island = FSDPPart(mesh) is not allowed: parameter {name} is a plain tensor. Fix: call "
            "fully_shard(model, mesh=mesh.device_mesh()) before building the optimizer and the sync"
        )
    placements = parameter.placements
    if parameter.device_mesh.size() != mesh.size or not all(isinstance(p, Shard) for p in placements):
        raise ConfigError(
            f"island = FSDPPart(mesh) is not allowed: parameter {name} is placed as {placements} over "
            f"{parameter.device_mesh.size()} ranks, and an island has {mesh.size}. Fix: shard it over the island"
        )
    return local(parameter)
