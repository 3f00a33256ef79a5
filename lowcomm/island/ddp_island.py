"""The island that trains with DistributedDataParallel: every rank has the model, gradients are averaged inside."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lowcomm.island.ddp import DDPPart
from lowcomm.island.inner import InnerConfig
from lowcomm.island.mesh import Mesh
from lowcomm.island.plain import Batch, LossFn, PlainIsland


def rows_of(batch: Batch, mesh: Mesh) -> Batch:
    """This rank's equal share of an island's batch: int64 [batch / size, seq_len] each."""
    return batch[0].chunk(mesh.size)[mesh.rank], batch[1].chunk(mesh.size)[mesh.rank]


class DDPIsland(PlainIsland):
    """One rank of it."""

    def __init__(
        self,
        model: nn.Module,
        config: InnerConfig,
        mesh: Mesh,
        *,
        steps: int,
        seed: int,
        losses: LossFn,
        forward: nn.Module,
        autocast_bf16: bool,
    ) -> None:
        self.mesh, self.ranks = mesh, mesh.size
        wrapped = DistributedDataParallel(forward, process_group=mesh.inside)
        super().__init__(
            model, config, steps=steps, seed=seed, losses=losses, forward=wrapped, autocast_bf16=autocast_bf16
        )
        self.wrapped = wrapped
        self.part = DDPPart(mesh)

    def own_rows(self, batch: Batch) -> Batch:
        return rows_of(batch, self.mesh)

    def sharing_gradients(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else self.wrapped.no_sync()
