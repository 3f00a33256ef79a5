"""Which ranks are one island, and the process groups among and within islands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from lowcomm.types import ConfigError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def divisors(world: int) -> list[int]:
    """Sizes that divide a world into islands, ascending."""
    return [size for size in range(1, world + 1) if world % size == 0]


def check_divides(size: int, world: int) -> None:
    """Raise ConfigError unless islands of `size` ranks divide a world of `world` ranks."""
    if size < 1 or world % size:
        raise ConfigError(
            f"island.size = {size} is not allowed: {world} ranks divide into islands of {divisors(world)} ranks. "
            f"Fix: pass one of these sizes, or start a multiple of {max(size, 1)} ranks"
        )


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Rank r of the world is rank r % size of island r // size: torchrun counts node by node.

    Groups are gloo on the CPU; beside NCCL on GPUs, whose small messages stay on the CPU.
    """

    islands: int
    """Islands of the run."""
    size: int
    """Ranks of each island."""
    island: int
    """Number of this process's island."""
    rank: int
    """This process within its island."""
    peers: dist.ProcessGroup
    """The ranks with this rank's number, one of each island, in island order: they sync with each other."""
    inside: dist.ProcessGroup
    """This island's ranks: what trains the replica uses it, and a sync between two inner steps."""
    beside: dist.ProcessGroup
    """This island's ranks again, gloo, for exchanges beside training: one group must not be used by two threads."""

    @classmethod
    def build(cls, size: int, device: str = "cpu", timeout_s: float = 1800.0) -> Mesh:
        """Make the groups; every rank of the initialised world calls it alike.

        size: ranks of each island. device: "cpu" or "cuda". timeout_s: after which a silent peer fails an exchange.
        Raises ConfigError if islands of that size do not divide the world.
        """
        world, rank = dist.get_world_size(), dist.get_rank()
        check_divides(size, world)
        rows = torch.arange(world).view(-1, size)
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        timeout = timedelta(seconds=timeout_s)
        made: dict[str, dist.ProcessGroup] = {}
        for name, lists, kind in (
            ("peers", rows.T.tolist(), backend),
            ("inside", rows.tolist(), backend),
            ("beside", rows.tolist(), "gloo"),
        ):
            for ranks in lists:  # all ranks make all groups, in one order
                group = dist.new_group(ranks, timeout=timeout, backend=kind)
                if rank in ranks and isinstance(group, dist.ProcessGroup):
                    made[name] = group
        return cls(islands=world // size, size=size, island=rank // size, rank=rank % size, **made)

    def device_mesh(self, device: str = "cpu") -> DeviceMesh:
        """This island's ranks as a 1-D DeviceMesh, as `fully_shard(model, mesh=...)` wants it."""
        from torch.distributed.device_mesh import DeviceMesh

        ranks = dist.get_process_group_ranks(self.inside)
        return DeviceMesh.from_group(self.inside, device, mesh=torch.tensor(ranks), mesh_dim_names=("inside",))

    def rows(self, row: torch.Tensor) -> torch.Tensor:
        """1-D rows of all ranks of this island, in rank order: [size, n]. Between two inner steps only."""
        out = torch.empty(self.size * row.numel(), dtype=row.dtype, device=row.device)
        dist.all_gather_single(out, row.contiguous(), group=self.inside)
        return out.view(self.size, -1)
