"""Which class trains an island of which kind: the one place that knows them all."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from lowcomm.config import RunConfig
from lowcomm.island import Mesh, PlainIsland, PrivateIsland
from lowcomm.island.ddp_island import DDPIsland
from lowcomm.island.fsdp_island import FSDPIsland
from lowcomm.island.pipeline_island import PipelineIsland
from lowcomm.island.sharp import SharpIsland
from lowcomm.island.tensor_island import TensorIsland
from lowcomm.island.zero_island import ZeROIsland
from lowcomm.local import SharpnessAware, ascend
from lowcomm.model import token_losses
from lowcomm.zeroth_order import ZerothOrder, ZerothOrderIsland


def build_island(config: RunConfig, model: nn.Module, number: int, compiled: bool, mesh: Mesh | None) -> PlainIsland:
    """Island `number`, or this rank's part of it, ready to train `model` (which it may take apart)."""
    seed, inner, steps = config.seed * 1_000_003 + number, config.inner, config.steps
    cuda = next(model.parameters()).device.type == "cuda"
    bf16 = config.model.autocast_bf16 and cuda
    forward: nn.Module = torch.compile(model) if compiled else model  # pyright: ignore[reportAssignmentType]
    if isinstance(inner.optimizer, ZerothOrder):
        return ZerothOrderIsland(
            model,
            inner,
            steps=steps,
            seed=seed,
            losses=token_losses,
            shared_seed=config.seed,
            number=number,
            autocast_bf16=bf16,
        )
    objective = config.sync.objective
    if mesh is None and isinstance(objective, SharpnessAware):
        sharp = SharpIsland(
            model, inner, steps=steps, seed=seed, losses=token_losses, forward=forward, autocast_bf16=bf16
        )
        sharp.ascend = partial(ascend, rho=objective.rho)
        return sharp
    if mesh is None:
        private = config.sync.privacy is not None and config.sync.privacy.level == "example"
        return (PrivateIsland if private else PlainIsland)(
            model, inner, steps=steps, seed=seed, losses=token_losses, forward=forward, autocast_bf16=bf16
        )
    kind = config.island.kind
    if kind == "ddp":
        return DDPIsland(
            model, inner, mesh, steps=steps, seed=seed, losses=token_losses, forward=forward, autocast_bf16=bf16
        )
    if kind == "fsdp":
        return FSDPIsland(model, inner, mesh, steps=steps, seed=seed, losses=token_losses, bf16=bf16)
    if kind == "pipeline":
        parts = config.island.microbatches or mesh.size
        return PipelineIsland(model, inner, mesh, steps=steps, seed=seed, losses=token_losses, parts=parts)
    if kind == "tensor":
        return TensorIsland(model, inner, mesh, steps=steps, seed=seed, losses=token_losses, autocast_bf16=bf16)
    rows = config.data.batch_size // mesh.size
    return ZeROIsland(
        model, inner, mesh, config.island, steps=steps, seed=seed, losses=token_losses, rows=rows, bf16=bf16
    )
