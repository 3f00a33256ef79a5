"""An island under DeepSpeed ZeRO 1, 2 or 3: each rank syncs its partition of the fp32 master weights.

The partitions are what the wrapped optimizer updates, with optimizer offload too; a sync reads and writes them where
they lie, by parameter, as 1-D pieces without the padding. Afterwards the engine's own copies (its 16-bit weights, or
the fp32 ones that it trains with) are refreshed the way the engine does it after a step.
Read against DeepSpeed 0.19.8; what it takes from the engine is checked, so that another layout is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowcomm.island.mesh import Mesh
from lowcomm.island.part import Part
from lowcomm.types import ConfigError


class ZeROPart(Part):
    """The fp32 partitions of `engine`, a DeepSpeedEngine whose data-parallel group is this island's ranks."""

    averages_gradients = False

    def __init__(self, engine: Any, mesh: Mesh) -> None:
        self.engine, self.mesh, self.rank = engine, mesh, mesh.rank
        self.stage = int(engine.zero_optimization_stage())
        self._inside = mesh.inside
        self.masters = masters(engine)
        size = engine.dp_world_size
        if size != mesh.size:
            raise ConfigError(
                f"island.size = {mesh.size} is not allowed: the DeepSpeed engine partitions over {size} ranks. Fix: "
                "pass mpu=MeshUnit(mesh) to deepspeed.initialize"
            )

    def held(self, model: nn.Module) -> dict[str, Tensor]:
        names = {id(p): name for name, p in model.named_parameters()}
        pieces = _pieces_of_three if self.stage == 3 else _pieces_of_two
        found = {names[id(p)]: t for p, t in pieces(self.engine.optimizer, self.masters, self.rank)}
        return {name: found[name] for name in names.values() if name in found}

    def expected(self, model: nn.Module) -> dict[str, int]:
        return {name: getattr(p, "ds_numel", p.numel()) for name, p in model.named_parameters() if p.requires_grad}

    def frozen(self, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        parameters = dict(model.named_parameters())
        return {name: getattr(parameters[name], "ds_tensor", parameters[name]).detach() for name in names}

    def gradient(self, name: str, held: Tensor, parameter: Tensor) -> Tensor:
        raise ConfigError(
            "schedule with data-parallel steps is not allowed: DeepSpeed keeps and clears the gradients itself. "
            "Fix: a schedule of local steps, such as EveryH, or an island under FSDP2"
        )

    @torch.no_grad()
    def written(self, names: Sequence[str]) -> None:
        optimizer = self.engine.optimizer
        if self.stage != 3:
            for copies, master in zip(optimizer.parallel_partitioned_bit16_groups, self.masters, strict=True):
                copies[self.rank].copy_(master)
                share([copy.detach() for copy in copies], self._inside)
            return
        optimizer._partition_all_parameters()  # persistent ones are gathered anew below, as after a step
        for i in range(len(self.masters)):
            optimizer._reassign_or_swap_out_partitioned_parameters(i)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def check_inner(self, parameters: Sequence[Tensor], inner: Optimizer) -> None:
        """Nothing: the engine made its partitions of the model's parameters, and `prove_shares` counts them."""


class EngineOptimizer(Optimizer):
    """A DeepSpeed engine's step as an optimizer, for the hooks and the state that a sync wants.

    `step()` is the engine's at a gradient accumulation boundary. Parameters are the fp32 partitions, state is that of
    the wrapped optimizer.
    """

    def __init__(self, engine: Any) -> None:
        groups = [{"params": [p]} for p in masters(engine)]
        super().__init__(groups, {"lr": 0.0})
        self.engine_step = engine.step
        self.wrapped: Optimizer = engine.optimizer.optimizer
        self.state = self.wrapped.state

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The engine's step; the hooks of a sync run around it."""
        self.engine_step()

    def set_lr(self, lr: float) -> None:
        """Learning rate of every group of the wrapped optimizer."""
        for group in [*self.param_groups, *self.wrapped.param_groups]:
            group["lr"] = lr


class MeshUnit:
    """What `deepspeed.initialize(mpu=...)` asks: data parallelism over an island's ranks, no model parallelism."""

    def __init__(self, mesh: Mesh, alone: torch.distributed.ProcessGroup) -> None:
        """alone: a group of this rank only."""
        self.mesh, self.alone = mesh, alone

    def get_data_parallel_group(self) -> torch.distributed.ProcessGroup:
        """The island's ranks."""
        return self.mesh.inside

    def get_data_parallel_rank(self) -> int:
        """This rank's number within the island."""
        return self.mesh.rank

    def get_data_parallel_world_size(self) -> int:
        """Ranks of an island."""
        return self.mesh.size

    def get_model_parallel_group(self) -> torch.distributed.ProcessGroup:
        """This rank alone."""
        return self.alone

    def get_model_parallel_rank(self) -> int:
        """0 of 1."""
        return 0

    def get_model_parallel_world_size(self) -> int:
        """1: every rank runs the whole model."""
        return 1


def share(partitions: Sequence[Tensor], group: torch.distributed.ProcessGroup) -> None:
    """Overwrite every partition (1-D) with what its rank has in it.

    In place: an engine gathers all at once after each of its steps, for which gloo takes twice the model's bytes.
    """
    for rank, partition in enumerate(partitions):
        torch.distributed.broadcast(partition, group_src=rank, group=group)


def masters(engine: Any) -> list[Tensor]:
    """The flat fp32 partitions that this rank's optimizer updates, by group. Raises ConfigError for other engines."""
    stage = int(engine.zero_optimization_stage())
    name = "fp32_partitioned_groups_flat" if stage == 3 else "single_partition_of_fp32_groups"
    found = getattr(engine.optimizer, name, None)
    if stage not in (1, 2, 3) or found is None:
        raise ConfigError(
            f"zero_optimization.stage = {stage} is not allowed: there are no fp32 master partitions ({name}). "
            "Fix: stage 1, 2 or 3; an engine without ZeRO trains like DDP"
        )
    for flat in found:
        if flat.dtype != torch.float32 or flat.numel() == 0:
            raise ConfigError(
                f"zero_optimization with master weights of {flat.dtype} and {flat.numel()} elements here is not "
                "allowed: a sync needs them in fp32 and in memory. Fix: leave out offload to NVMe and master_weights"
            )
    return list(found)


def _pieces_of_two(optimizer: Any, flats: Sequence[Tensor], rank: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(parameter, its piece of this rank's partition) of stages 1 and 2, where parameters lie one after another."""
    for i, flat in enumerate(flats):
        first = rank * int(optimizer.partition_size[i])
        group, offsets = optimizer.round_robin_bit16_groups[i], optimizer.round_robin_bit16_offsets[i]
        for p, offset in zip(group, offsets, strict=True):
            start, stop = max(offset - first, 0), min(offset + p.numel() - first, flat.numel())
            if start < stop:
                yield p, flat.detach()[start:stop]


def _pieces_of_three(optimizer: Any, flats: Sequence[Tensor], rank: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same for stage 3, where every parameter is cut over the ranks by itself."""
    for group, flat in zip(optimizer.fp16_groups, flats, strict=True):
        offset = 0
        for p in group:
            size = p.ds_tensor.ds_numel
            real = min(max(p.ds_numel - rank * size, 0), size)
            if real:
                yield p, flat.detach()[offset : offset + real]
            offset += size
