"""How many ranks train one replica, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lowcomm.island.inner import Inner
from lowcomm.types import ConfigError, require

KINDS = ("ddp", "fsdp", "zero1", "zero2", "zero3", "pipeline", "tensor")


@dataclass(frozen=True, kw_only=True)
class IslandConfig:
    """The ranks of an island share its batches; they sync shard by shard with their peers in the other islands."""

    kind: Literal["ddp", "fsdp", "zero1", "zero2", "zero3", "pipeline", "tensor"] = "ddp"
    """What trains a replica of several ranks: DDP, FSDP2, ZeRO 1 to 3, a 1F1B pipeline, or tensor parallelism."""
    size: int | None = None
    """Ranks per island. None: world / islands where that is given, a node's ranks on several nodes, else 1."""
    offload: bool = False
    """ZeRO: optimizer state and master weights in CPU memory."""
    microbatches: int | None = None
    """Pipeline: parts of a batch that are on their way through the stages; None: as many as stages."""

    def check_optimizer(self, inner: Inner) -> None:
        """Raise ConfigError for an inner optimizer that can't update what a rank of such an island has."""
        cut = {"ddp": (), "pipeline": (), "fsdp": ("none",), "tensor": ("none",)}.get(self.kind, ("none", "spread"))
        if (self.size or 1) > 1 and inner.shards in cut:
            raise ConfigError(
                f"island.kind = '{self.kind}' is not allowed with inner.optimizer = {type(inner).__name__}, which "
                f"needs whole matrices. Fix: --island.kind {'fsdp' if inner.shards == 'spread' else 'ddp'}"
            )

    def check(self, batch_size: int, averages_gradients: bool, simulated: bool) -> None:
        """Raise ConfigError for a value out of range or one that does not fit the run."""
        require(self.kind in KINDS, "island.kind", self.kind, f"one of {', '.join(KINDS)}", "ddp is the plain one")
        size = self.size or 1
        require(size >= 1 and self.size != 0, "island.size", self.size, "1 or more", "leave it out for one rank")
        parts = self.microbatches
        legal = f"{size} or more, one for each stage"
        require(parts is None or parts >= size, "island.microbatches", parts, legal, "leave it out")
        if size > 1 and simulated:
            raise ConfigError(
                f"island.size = {size} is not allowed with transport = 'simulated': islands of several ranks are "
                "processes. Fix: --transport collective"
            )
        zero = self.kind.startswith("zero")
        require(zero or not self.offload, "island.offload", True, "False without ZeRO", "pass --island.kind zero2")
        if zero and averages_gradients and self.size != 1:
            raise ConfigError(
                f"island.kind = '{self.kind}' is not allowed with a schedule of data-parallel steps: DeepSpeed keeps "
                "the gradients to itself. Fix: --island.kind fsdp, or a schedule of local steps"
            )
        parts = (parts or size) if self.kind == "pipeline" else size
        fits = batch_size % parts == 0 or self.kind == "tensor"  # whose ranks read the same rows
        name = "island.microbatches" if self.kind == "pipeline" else "island.size"
        require(
            fits, name, parts, f"a divisor of data.batch_size ({batch_size})", f"pass --data.batch-size {parts * 8}"
        )
