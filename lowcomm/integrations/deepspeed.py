"""DeepSpeed: islands whose ranks train with one engine.

    engine, _, _, _ = deepspeed.initialize(model=model, config=config, mpu=islands(size=1))
    sync = attach(engine, every=32)
    ...                                    # engine.backward, engine.step as before
    sync.finish()

The island is what the engine takes for its data-parallel group, so it is named when the engine is made: without `mpu`
DeepSpeed averages gradients over all ranks. Stages 0 (fp32) to 3; from 1 on the fp32 partitions are synced, and
`engine.step` goes through an optimizer that counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from lowcomm.aggregate import Aggregator
from lowcomm.codec import Codec
from lowcomm.integrations.groups import IslandGroups, check_inside
from lowcomm.integrations.settings import Settings
from lowcomm.island import DDPPart, EngineOptimizer, MeshUnit, ZeROPart
from lowcomm.outer import Outer
from lowcomm.schedule import Schedule
from lowcomm.state.spec import BufferRule
from lowcomm.sync import LocalSGD
from lowcomm.types import ConfigError, require

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def islands(*, size: int = 1) -> MeshUnit:
    """The `mpu` of islands of `size` consecutive ranks. Every rank calls it, after `deepspeed.init_distributed`.

    Raises ConfigError without a process group, and for a size that does not divide the world.
    """
    mesh, alone = IslandGroups.build(size).mesh, IslandGroups.build(1).inside
    if mesh is None or alone is None:
        raise ConfigError("islands() came before there is a process group. Fix: deepspeed.init_distributed() first")
    return MeshUnit(mesh, alone)


def attach(
    engine: DeepSpeedEngine,
    *,
    every: int,
    outer: Outer | None = None,
    codec: Codec | None = None,
    schedule: Schedule | None = None,
    aggregator: Aggregator | None = None,
    buffers: Mapping[str, BufferRule] | None = None,
    outer_device: torch.device | str | None = None,
    seed: int = 0,
) -> LocalSGD:
    """LocalSGD over the engine's model and optimizer; arguments as LocalSGD has them.

    Raises ConfigError for an engine that averages gradients beyond its island, or may skip steps.
    """
    settings = Settings.of(
        every=every,
        outer=outer,
        codec=codec,
        schedule=schedule,
        aggregator=aggregator,
        buffers=buffers,
        outer_device=outer_device,
        seed=seed,
    )
    _check_engine(engine, settings)
    fix = "deepspeed.initialize(..., mpu=lowcomm.deepspeed.islands(size=...))"
    check_inside(cast("dist.ProcessGroup", engine.data_parallel_group), "the engine", fix)
    unit = engine.mpu
    if not isinstance(unit, MeshUnit):
        raise ConfigError(f"mpu = {type(unit).__name__} says nothing of islands. Fix: {fix}")
    module, optimizer = cast("nn.Module", engine.module), engine.optimizer
    if engine.zero_optimization_stage() > 0:
        inner = EngineOptimizer(engine)
        _step_through(engine, inner)
        return settings.build(module, inner, ZeROPart(engine, unit.mesh))
    if engine.bfloat16_enabled() or not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"stage 0 with {type(optimizer).__name__} is not allowed: it steps copies of the parameters. "
            "Fix: zero_optimization.stage 1, or fp32"
        )
    return settings.build(module, optimizer, None if unit.mesh.size == 1 else DDPPart(unit.mesh))


def _check_engine(engine: DeepSpeedEngine, settings: Settings) -> None:
    if settings.schedule(1, settings.every).average_gradients:
        raise ConfigError(
            f"schedule = {settings.schedule} is the engine's own work: leave mpu out. Fix: another schedule"
        )
    if engine.fp16_enabled():
        raise ConfigError(
            "fp16 is not allowed: its loss scaler skips steps on single islands, which would then wait for each other "
            "for ever. Fix: bf16"
        )


def _step_through(engine: DeepSpeedEngine, inner: EngineOptimizer) -> None:
    """Let `engine.step()` run the hooks of `inner` whenever it takes an optimizer's step."""

    def step(lr_kwargs: object = None) -> None:
        require(lr_kwargs is None, "lr_kwargs", lr_kwargs, "None", "give the engine a learning-rate scheduler")
        if engine.is_gradient_accumulation_boundary():
            inner.step()
        else:
            inner.engine_step()

    engine.step = step
