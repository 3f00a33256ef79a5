"""The process groups of islands of several ranks, for trainers that bring their own world.

World = islands x size ranks: rank r is local rank r % size of island r // size. A rank trains with `inside` and
exchanges with `peers`, the ranks that have its place in the other islands.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist

from lowcomm.transport import Collective
from lowcomm.types import ConfigError, require


@dataclass(frozen=True, kw_only=True)
class IslandGroups:
    """This rank's two groups; None where there is no process group at all."""

    size: int
    """Ranks per island."""
    inside: dist.ProcessGroup | None
    peers: dist.ProcessGroup | None

    @classmethod
    def build(cls, size: int) -> IslandGroups:
        """Make the groups; every rank calls it. Raises ConfigError for a size that does not divide the world."""
        require(size >= 1, "island_size", size, "1 or more", "leave it out for islands of one rank")
        if not (dist.is_available() and dist.is_initialized()):
            require(size == 1, "island_size", size, "1 without a process group", "start under torchrun")
            return cls(size=1, inside=None, peers=None)
        world, rank = dist.get_world_size(), dist.get_rank()
        legal = ", ".join(str(n) for n in range(1, world + 1) if world % n == 0)
        require(world % size == 0, "island_size", size, f"one of {legal}, which divide {world} ranks", "pick one")
        insides = [range(k * size, (k + 1) * size) for k in range(world // size)]
        peers = [range(place, world, size) for place in range(size)]
        made = [_make([list(ranks) for ranks in way], rank) for way in (insides, peers)]
        return cls(size=size, inside=made[0], peers=made[1])

    def transport(self) -> Collective | None:
        """Between islands; None (LocalSGD's own choice) without a process group."""
        return None if self.peers is None else Collective(group=self.peers)


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


def _make(ways: list[list[int]], rank: int) -> dist.ProcessGroup:
    """All groups, in the same order on every rank; returns the one that this rank is in."""
    mine: dist.ProcessGroup | None = None
    for ranks in ways:
        group = dist.new_group(ranks)
        if rank in ranks:
            assert isinstance(group, dist.ProcessGroup)
            mine = group
    assert mine is not None
    return mine
