"""Which machines an island needs: ranks, memory of each, and what carries the sync.

Bytes per parameter, everything in fp32: weights 4, gradients 4, moments of AdamW 8; the sync keeps the anchor (4), the
outer momentum (4; none of plain averaging) and the residual of error feedback (4), and for the time of a sync takes
another 4.6 (results/core.json: 1.14 times the shard). Left out: activations, which go by batch and sequence; for them,
and for what torch and CUDA take, 30 % of a GPU are kept free. Several ranks share all of it (FSDP2), or have it whole
each (DDP). The sync's part may lie in CPU memory instead (`sync.outer_device`); it then goes over gloo, not NCCL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lowcomm.plan.runtime import Job, Settings
from lowcomm.types import require

TRAINED_BYTES = 16.0
ANCHOR_BYTES = MOMENTUM_BYTES = RESIDUAL_BYTES = 4.0
SYNC_BYTES = 4.6
USABLE = 0.7
"""Share of a GPU's memory that may hold state."""
MOST_RANKS = 4096


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What one island runs on; each rank is a process with a GPU."""

    ranks: int
    """Of an island."""
    kind: Literal["ddp", "fsdp"]
    """How several ranks share a replica."""
    nodes: int
    """Of an island."""
    gpu_bytes: float
    """State on each GPU, without activations."""
    cpu_bytes: float
    """State in CPU memory for each rank."""
    outer_device: Literal["model", "cpu"]
    fits: bool
    """Whether the state leaves room for activations."""

    @property
    def ranks_per_node(self) -> int:
        """Processes that torchrun starts on a node."""
        return self.ranks // self.nodes

    @property
    def backend(self) -> str:
        """What carries the exchange between islands."""
        return "gloo" if self.outer_device == "cpu" else "NCCL"


def machines_for(
    job: Job, settings: Settings, gpu_memory_bytes: float, gpus_per_node: int, ranks: int | None = None
) -> Machines:
    """The fewest ranks whose GPUs hold what is trained, or `ranks`; what the sync keeps goes to the CPU if it must.

    Raises ConfigError for ranks that do not fill their nodes.
    """
    trained = TRAINED_BYTES * job.parameters
    kept = (ANCHOR_BYTES + SYNC_BYTES) * job.parameters
    kept += 0.0 if settings.codec.kind == "gathered" else MOMENTUM_BYTES * job.parameters
    kept += 0.0 if settings.codec.kind == "plain" else RESIDUAL_BYTES * job.parameters
    room = USABLE * gpu_memory_bytes
    if ranks is None:
        ranks = 1
        while trained / ranks > room and ranks < MOST_RANKS:
            ranks *= 2
        ranks = ranks if ranks <= gpus_per_node else -(-ranks // gpus_per_node) * gpus_per_node
    per_node = min(ranks, gpus_per_node)
    fix = f"pass --ranks {-(-ranks // gpus_per_node) * gpus_per_node}, or another --gpus-per-node"
    require(ranks % per_node == 0, "--ranks", ranks, f"up to {gpus_per_node}, or a multiple of it", fix)
    kind = "fsdp" if ranks > 1 and trained > room else "ddp"
    share = ranks if kind == "fsdp" else 1
    synced = kept / ranks  # under DDP, too, each rank syncs a part of the rows
    on_cpu = settings.streams > 1 or trained / share + synced > room
    gpu = trained / share + (0.0 if on_cpu else synced)
    return Machines(
        ranks=ranks,
        kind=kind,
        nodes=ranks // per_node,
        gpu_bytes=gpu,
        cpu_bytes=synced if on_cpu else 0.0,
        outer_device="cpu" if on_cpu else "model",
        fits=gpu <= room,
    )
