"""The island that trains under FSDP2: parameters, gradients and optimizer state are sharded over its ranks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from lowcomm.island.ddp_island import rows_of
from lowcomm.island.fsdp import FSDPPart
from lowcomm.island.inner import InnerConfig
from lowcomm.island.mesh import Mesh
from lowcomm.island.plain import Batch, LossFn, PlainIsland


class FSDPIsland(PlainIsland):
    """One rank of it."""

    def __init__(
        self, model: nn.Module, config: InnerConfig, mesh: Mesh, *, steps: int, seed: int, losses: LossFn, bf16: bool
    ) -> None:
        self.mesh, self.ranks = mesh, mesh.size
        shard(model, mesh, bf16)
        super().__init__(model, config, steps=steps, seed=seed, losses=losses)
        self.part = FSDPPart(mesh)

    def own_rows(self, batch: Batch) -> Batch:
        return rows_of(batch, self.mesh)

    def sharing_gradients(self, last: bool) -> AbstractContextManager[None]:
        cast("Any", self.model).set_requires_gradient_sync(last)
        return nullcontext()

    def clip(self, clip_norm: float) -> float:
        norm = nn.utils.clip_grad_norm_(self.params, clip_norm)
        return float(cast("Any", norm).full_tensor())

    def whole_state(self) -> dict[str, Tensor] | None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)  # tensor by tensor, to the first rank
        return cast("dict[str, Tensor]", get_model_state_dict(self.model, options=options))


def shard(model: nn.Module, mesh: Mesh, bf16: bool) -> None:
    """`fully_shard` on every transformer block and on the model. bf16: for computing; weights stay as they are."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy()
    if bf16:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    device = next(model.parameters()).device
    device_mesh = mesh.device_mesh(device.type)
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=device_mesh, mp_policy=policy)
    fully_shard(model, mesh=device_mesh, mp_policy=policy)
