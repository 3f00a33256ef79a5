"""Accelerate: a loop with an `Accelerator` whose processes are islands.

    accelerator = Accelerator()
    confine(accelerator)                              # before prepare: gradients stay inside the island
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    sync = attach(accelerator, model, optimizer, every=32)
    ...                                               # the loop as it was
    sync.finish()

The loader still gives each process its own part of the data. Do not hand the learning-rate scheduler to `prepare`: it
would take one step per process, and islands do not divide the steps of a run between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lowcomm.aggregate import Aggregator
from lowcomm.codec import Codec
from lowcomm.integrations.groups import IslandGroups, check_inside
from lowcomm.integrations.settings import Settings
from lowcomm.outer import Outer
from lowcomm.schedule import Schedule
from lowcomm.state.spec import BufferRule
from lowcomm.sync import LocalSGD
from lowcomm.types import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator


def confine(accelerator: Accelerator, *, island_size: int = 1) -> IslandGroups:
    """Let `accelerator.prepare` wrap models in DDP over this island's ranks only. Call it before `prepare`.

    DDP would else send gradients and buffers to every rank in every step, and all weights once.
    Raises ConfigError for a size that does not divide the world.
    """
    groups = IslandGroups.build(island_size)
    if groups.inside is not None:
        accelerator.ddp_handler = _confined(accelerator.ddp_handler, groups.inside)
    return groups


def attach(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
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
    """LocalSGD over what `accelerator.prepare` returned; arguments as LocalSGD has them.

    Raises ConfigError if gradients leave the island or steps may be skipped (fp16), and what LocalSGD raises.
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
    check_accelerator(accelerator)
    size = 1
    if isinstance(model, DistributedDataParallel):
        size = check_inside(model.process_group, "DDP", "call confine(accelerator) before accelerator.prepare(...)")
    whole = cast("nn.Module", accelerator.unwrap_model(model))
    return settings.attach(whole, bare(optimizer), IslandGroups.build(size))


def check_accelerator(accelerator: Accelerator) -> None:
    """Raise ConfigError for an engine that has its own place, or a precision that skips steps."""
    kind = accelerator.distributed_type.value
    if kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        raise ConfigError(
            f"distributed_type = {kind} is not allowed here. Fix: lowcomm.deepspeed.attach(engine, ...) for DeepSpeed, "
            "LocalSGD itself for FSDP2"
        )
    if accelerator.mixed_precision == "fp16":
        raise ConfigError(
            "mixed_precision = 'fp16' is not allowed: its loss scaler skips steps on single islands, which would then "
            "wait for each other for ever. Fix: use 'bf16'"
        )


def bare(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside Accelerate's wrapper, whose own step does not run hooks."""
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, Optimizer)
    return inner


def gather_inside(groups: IslandGroups) -> Callable[[Any], Any]:
    """A stand-in for `accelerator.gather` that asks this island's ranks only: [ranks, ...] of nested tensors."""
    from accelerate.utils.operations import recursively_apply

    def gather_one(tensor: Tensor) -> Tensor:
        if groups.size == 1:
            return tensor.reshape(1) if tensor.ndim == 0 else tensor
        rows = tensor.reshape(1) if tensor.ndim == 0 else tensor.contiguous()
        out = [torch.empty_like(rows) for _ in range(groups.size)]
        dist.all_gather(out, rows, group=groups.inside)
        return torch.cat(out)

    return lambda data: recursively_apply(gather_one, data, error_on_other_type=True)


def _confined(handler: Any, group: dist.ProcessGroup) -> Any:
    """The DDP settings that were there, with the island's group, which is no field because fields are copied."""
    from accelerate.utils import DistributedDataParallelKwargs

    class IslandDDP(DistributedDataParallelKwargs):
        def to_kwargs(self) -> dict[str, Any]:
            return {**super().to_kwargs(), "process_group": group}

    return IslandDDP() if handler is None else IslandDDP(**vars(handler))
