"""The process groups of islands of several ranks, for trainers that bring their own world.

World = islands x size ranks: rank r is local rank r % size of island r // size. A rank trains with `inside` and
exchanges with `peers`, the ranks that have its place in the other islands.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from lowcomm.island import Mesh
from lowcomm.types import ConfigError, require


@dataclass(frozen=True, kw_only=True)
class IslandGroups:
    """This rank's place among islands of `size` ranks; mesh: None where there is no process group at all."""

    size: int
    mesh: Mesh | None

    @classmethod
    def build(cls, size: int) -> IslandGroups:
        """Make the groups; every rank calls it. Raises ConfigError for a size that does not divide the world."""
        require(size >= 1, "island_size", size, "1 or more", "leave it out for islands of one rank")
        if not (dist.is_available() and dist.is_initialized()):
            require(size == 1, "island_size", size, "1 without a process group", "start under torchrun")
            return cls(size=1, mesh=None)
        return cls(size=size, mesh=Mesh.build(size, "cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def inside(self) -> dist.ProcessGroup | None:
        """The ranks of this island."""
        return None if self.mesh is None else self.mesh.inside


def check_inside(group: dist.ProcessGroup | None, what: str, fix: str) -> int:
    """Ranks in the group in which `what` averages gradients; raises ConfigError if that is more than this island.

    A group of the whole world would be one island: nothing would be left to synchronise but once more.
    """
    size, world = dist.get_world_size(group), dist.get_world_size()
    ranks = dist.get_process_group_ranks(group)
    regular = world % size == 0 and ranks == list(range(ranks[0], ranks[0] + size)) and ranks[0] % size == 0
    if size == world > 1 or not regular:
        raise ConfigError(f"{what} averages gradients over ranks {ranks} of {world}: that is no island. Fix: {fix}")
    return size
