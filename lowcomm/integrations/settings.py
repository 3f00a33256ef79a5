"""What every integration takes: the arguments of LocalSGD, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from lowcomm.aggregate import Aggregator, Mean
from lowcomm.codec import Codec, Fp32
from lowcomm.integrations.groups import IslandGroups
from lowcomm.island import DDPPart, Part
from lowcomm.outer import Nesterov, Outer
from lowcomm.schedule import EveryH, Schedule
from lowcomm.state.spec import BufferRule, SyncSpec
from lowcomm.sync import LocalSGD
from lowcomm.sync.compatibility import check_spec
from lowcomm.sync.wording import speaks_of_arguments
from lowcomm.transport import Transport
from lowcomm.typecheck import check_types
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Settings:
    """See LocalSGD for each of them."""

    every: int
    outer: Outer
    codec: Codec
    schedule: Schedule
    aggregator: Aggregator
    buffers: Mapping[str, BufferRule] | None
    outer_device: torch.device | str | None
    seed: int

    @classmethod
    def of(
        cls,
        *,
        every: int,
        outer: Outer | None = None,
        codec: Codec | None = None,
        schedule: Schedule | None = None,
        aggregator: Aggregator | None = None,
        buffers: Mapping[str, BufferRule] | None = None,
        outer_device: torch.device | str | None = None,
        seed: int = 0,
    ) -> Settings:
        """With LocalSGD's parts for those that are None."""
        return cls(
            every=every,
            outer=outer or Nesterov(),
            codec=codec or Fp32(),
            schedule=schedule or EveryH(),
            aggregator=aggregator or Mean(),
            buffers=buffers,
            outer_device=outer_device,
            seed=seed,
        )

    @speaks_of_arguments()
    def __post_init__(self) -> None:
        """Raise ConfigError for a value out of range or of another type, or parts that do not fit."""
        check_types(self)
        require(self.every >= 1, "every", self.every, "1 or more", "32 suits short runs, 500 long ones")
        check_spec(
            SyncSpec(
                every=self.every,
                outer=self.outer,
                codec=self.codec,
                schedule=self.schedule,
                aggregator=self.aggregator,
            )
        )

    def attach(self, model: nn.Module, inner: Optimizer, groups: IslandGroups) -> LocalSGD:
        """The LocalSGD of this rank, whose island trains whole models under DDP; raises what LocalSGD raises."""
        mesh = groups.mesh
        return self.build(model, inner, None if mesh is None or mesh.size == 1 else DDPPart(mesh))

    def build(self, model: nn.Module, inner: Optimizer, island: Part | None) -> LocalSGD:
        """The LocalSGD of a rank that holds this part of its island; None: all of it, and every rank is an island."""
        return LocalSGD(
            model,
            inner,
            every=self.every,
            outer=self.outer,
            codec=self.codec,
            schedule=self.schedule,
            aggregator=self.aggregator,
            island=island,
            buffers=self.buffers,
            outer_device=self.outer_device,
            seed=self.seed,
        )

    def describe(self, transport: Transport) -> dict[str, str | int]:
        """What must be equal in a run that goes on from a checkpoint of this one."""
        return {
            "every": self.every,
            "outer": repr(self.outer),
            "codec": repr(self.codec),
            "schedule": repr(self.schedule),
            "aggregator": repr(self.aggregator),
            "seed": self.seed,
            "islands": transport.islands,
        }
