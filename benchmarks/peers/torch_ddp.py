"""torch.nn.parallel.DistributedDataParallel over gloo: as it comes, or with PyTorch's bf16 or PowerSGD hook."""

# annotations are real objects here: DDP looks at those of its hooks

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from benchmarks.peers.session import Session, run

WHOLE_MB = 64
"""One bucket for the PowerSGD hook: with more it starts all_reduces in callbacks, in an order that differs between the
ranks, and gloo aborts (seen on the tiny preset with torch 2.13)."""


class TorchDdp:
    """`option`: None, "bf16" or "powersgd" (rank 1, the hook's default, from the third step on)."""

    def __init__(self, session: Session) -> None:
        dist.init_process_group("gloo", timeout=timedelta(seconds=1800))
        self.option = session.plan.option
        self.model = session.model()
        whole = WHOLE_MB if self.option == "powersgd" else None
        wrapped = DistributedDataParallel(self.model, bucket_cap_mb=whole)
        self.island, self.shard, self.steps = session.island(self.model, wrapped), session.shard(), 0
        self.buffer_bytes = 0
        """Of the tensors that the hook has handed to all_reduce; plain DDP has no hook that could count."""
        self.powersgd: PowerSGDState | None = None
        if self.option == "bf16":
            wrapped.register_comm_hook(None, self.bf16)
        elif self.option == "powersgd":
            self.powersgd = PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
            wrapped.register_comm_hook(self.powersgd, powerSGD_hook)

    def bf16(self, _: object, bucket: dist.GradBucket) -> Future[torch.Tensor]:
        """PyTorch's hook, counted."""
        self.buffer_bytes += 2 * bucket.buffer().numel()
        world = dist.group.WORLD
        assert world is not None
        return bf16_compress_hook(world, bucket)

    def step(self) -> None:
        self.island.backward([self.shard.next_batch()])
        self.island.update(self.steps)
        self.steps += 1

    def settle(self) -> None:
        return

    def own_sent_bytes(self) -> int | None:
        if self.option is None:
            return None
        n = dist.get_world_size()
        reduced = self.buffer_bytes if self.powersgd is None else 4 * self.powersgd.total_numel_after_compression
        return reduced * 2 * (n - 1) // n

    def finish(self) -> nn.Module:
        return self.model


if __name__ == "__main__":
    run(TorchDdp)
