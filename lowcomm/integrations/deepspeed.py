"""DeepSpeed: islands whose ranks train with one engine.

    engine, _, _, _ = deepspeed.initialize(model=model, config=config, mpu=islands(size=1))
    sync = attach(engine, every=32)
    ...                                    # engine.backward, engine.step as before
    sync.finish()

The island is what the engine takes for its data-parallel group, so it is named when the engine is made: without `mpu`
DeepSpeed averages gradients over all ranks. Here: stage 0 in fp32, whose optimizer steps the parameters themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from lowcomm.aggregate import Aggregator, Mean
from lowcomm.codec import Codec, Fp32
from lowcomm.coverage import BufferRule
from lowcomm.integrations.groups import IslandGroups, check_inside
from lowcomm.integrations.settings import Settings
from lowcomm.outer import Nesterov, Outer
from lowcomm.schedule import EveryH, Schedule
from lowcomm.sync import LocalSGD
from lowcomm.types import ConfigError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass(frozen=True, kw_only=True)
class Islands:
    """What `deepspeed.initialize(mpu=...)` asks: this island's ranks are the data-parallel group, models are whole."""

    groups: IslandGroups
    alone: dist.ProcessGroup
    """This rank alone, for what a split model would share."""

    def get_data_parallel_group(self) -> dist.ProcessGroup | None:
        """The ranks of this island."""
        return self.groups.inside

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Their ranks in the world."""
        return dist.get_process_group_ranks(self.groups.inside)

    def get_data_parallel_rank(self) -> int:
        """This rank's place in the island."""
        return dist.get_rank(self.groups.inside)

    def get_data_parallel_world_size(self) -> int:
        """Ranks of an island."""
        return self.groups.size

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """This rank alone."""
        return self.alone

    def get_model_parallel_rank(self) -> int:
        """0: models are whole."""
        return 0

    def get_model_parallel_world_size(self) -> int:
        """1: models are whole."""
        return 1


def islands(*, size: int = 1) -> Islands:
    """The `mpu` of islands of `size` consecutive ranks. Every rank calls it, after `deepspeed.init_distributed`.

    Raises ConfigError without a process group, and for a size that does not divide the world.
    """
    groups, alone = IslandGroups.build(size), IslandGroups.build(1).inside
    if alone is None:
        raise ConfigError("islands() came before there is a process group. Fix: deepspeed.init_distributed() first")
    return Islands(groups=groups, alone=alone)


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

    Raises ConfigError for an engine that averages gradients beyond its island, splits its optimizer, or may skip steps.
    """
    settings = Settings(
        every=every,
        outer=outer or Nesterov(),
        codec=codec or Fp32(),
        schedule=schedule or EveryH(),
        aggregator=aggregator or Mean(),
        buffers=buffers,
        outer_device=outer_device,
        seed=seed,
    )
    if settings.schedule(1, every).average_gradients:
        raise ConfigError(
            f"schedule = {settings.schedule} is the engine's own work: leave mpu out. Fix: another schedule"
        )
    if engine.fp16_enabled():
        raise ConfigError(
            "fp16 is not allowed: its loss scaler skips steps on single islands, which would then wait for each other "
            "for ever. Fix: bf16"
        )
    optimizer = engine.optimizer
    stage = engine.zero_optimization_stage()
    if stage > 0 or engine.bfloat16_enabled() or not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"zero_optimization.stage = {stage} with {type(optimizer).__name__} is not allowed: its optimizer steps "
            "copies of the parameters. Fix: stage 0 in fp32"
        )
    fix = "deepspeed.initialize(..., mpu=lowcomm.deepspeed.islands(size=...))"
    size = check_inside(cast("dist.ProcessGroup", engine.data_parallel_group), "the engine", fix)
    return settings.attach(cast("nn.Module", engine.module), optimizer, IslandGroups.build(size))
