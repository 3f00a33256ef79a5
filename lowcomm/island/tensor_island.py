"""The island that trains with tensor parallelism: linear maps are cut over its ranks, which all read the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from lowcomm.island.combined import Combined
from lowcomm.island.dtensor import is_spread, local
from lowcomm.island.inner import InnerConfig
from lowcomm.island.mesh import Mesh
from lowcomm.island.plain import Batch, LossFn, PlainIsland
from lowcomm.island.tensor import TensorPart, is_cut
from lowcomm.island.tensor_plan import SUMMED, parallel_style, plan_of


class TensorIsland(PlainIsland):
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
        autocast_bf16: bool,
    ) -> None:
        self.mesh = mesh
        cut(model, mesh)
        super().__init__(model, config, steps=steps, seed=seed, losses=losses, autocast_bf16=autocast_bf16)
        self.inner = keep_apart(self.inner)
        self.part = TensorPart(mesh)
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._cut = [is_cut(name, p, mesh) for name, p in trainable.items()]

    def backward(self, batches: Sequence[Batch]) -> float:
        loss = super().backward(batches)
        for p in self.params:
            if p.grad is not None and is_spread(p):  # that of an embedding is left whole, or as a sum to be made
                p.grad = cast("Any", p.grad).redistribute(placements=cast("Any", p).placements)
        return loss

    def clip(self, clip_norm: float) -> float:
        """Each shard's squares count on its rank, those of what all ranks have once."""
        gradients: dict[bool, list[Tensor]] = {True: [], False: []}
        for p, is_shard in zip(self.params, self._cut, strict=True):
            if p.grad is not None:
                gradients[is_shard].append(local(p.grad))
        shards, whole = (nn.utils.get_total_norm(gradients[key]) for key in (True, False))
        norms = torch.cat([self.mesh.rows(shards.reshape(1).to(self.device)).flatten(), whole.reshape(1)])
        norm = torch.linalg.vector_norm(norms)
        factor = torch.clamp(clip_norm / (norm + 1e-6), max=1.0)  # as torch.nn.utils has it
        for gradient in [*gradients[True], *gradients[False]]:
            gradient.mul_(factor)
        return float(norm)

    def whole_state(self) -> dict[str, Tensor] | None:
        state: dict[str, Tensor] = {}
        for name, tensor in self.model.state_dict().items():  # tensor by tensor, kept on the first rank only
            full = cast("Any", tensor).full_tensor() if is_spread(tensor) else tensor
            if self.mesh.rank == 0:
                state[name] = full.detach().cpu()
        return state


def cut(model: nn.Module, mesh: Mesh) -> None:
    """Shard the model's linear maps over the island's ranks by its own plan. Raises ConfigError if it can't be."""
    from torch.distributed.tensor.parallel import parallelize_module

    plan = plan_of(model, mesh.size)
    styles = {name: parallel_style(style) for name, style in plan.items() if style not in SUMMED}
    device = next(model.parameters()).device.type
    parallelize_module(model, mesh.device_mesh(device), styles, src_data_rank=None)  # all have the same weights
    for name, style in plan.items():
        for p in model.get_submodule(name).parameters() if style in SUMMED else ():
            if p.requires_grad:
                p.register_hook(lambda gradient: _summed(gradient, mesh))


def keep_apart(inner: Optimizer) -> Optimizer:
    """Split the optimizer's groups into DTensors and plain tensors: fused steps take no list of both."""
    if isinstance(inner, Combined):
        return Combined([keep_apart(part) for part in inner.parts])
    groups: list[dict[str, Any]] = []
    for group in inner.param_groups:
        for spread in (True, False):
            params = [p for p in group["params"] if is_spread(p) == spread]
            if params:
                groups.append({**group, "params": params})
    inner.param_groups[:] = groups
    return inner


def _summed(gradient: Tensor, mesh: Mesh) -> Tensor:
    """A gradient's sum over the island's ranks, each of which saw its heads only."""
    total = gradient.contiguous().clone()
    dist.all_reduce(total, group=mesh.inside)
    return total
