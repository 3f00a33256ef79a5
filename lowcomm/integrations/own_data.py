"""Sites under transformers' Trainer whose datasets are their own: nothing is dealt out by rank, nothing is pooled.

Accelerate gives rank r of n every n-th batch of what it takes for one dataset on all ranks, and sends random states
from rank 0 at the start of each epoch. Here each rank reads all of its own, in its own epochs, and evaluates by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from accelerate import Accelerator


def keep_own_data(accelerator: Accelerator, gather_own: Callable[[Any], Any]) -> None:
    """Let `accelerator` leave data loaders, and what an evaluation brings together, to this rank alone."""
    from accelerate.data_loader import prepare_data_loader

    given: Any = accelerator

    def prepare_own(
        data_loader: DataLoader[Any], device_placement: bool | None = None, slice_fn_for_dispatch: object = None
    ) -> DataLoader[Any]:
        if not getattr(data_loader, "_is_accelerate_prepared", False):
            data_loader = prepare_data_loader(
                data_loader,
                given.device,
                num_processes=1,
                process_index=0,
                put_on_device=given.device_placement if device_placement is None else device_placement,
                rng_types=[],
                dispatch_batches=False,
                use_seedable_sampler=given.use_seedable_sampler,
                data_seed=given.dataloader_config.data_seed,
                non_blocking=given.non_blocking,
                use_stateful_dataloader=given.use_stateful_dataloader,
            )
            given._dataloaders.append(data_loader)
        return data_loader

    def as_it_is(tensor: Any, dim: int = 0, pad_index: int = 0, pad_first: bool = False) -> Any:
        return tensor

    given.prepare_data_loader, given.pad_across_processes = prepare_own, as_it_is
    given.gather = given.gather_for_metrics = gather_own
