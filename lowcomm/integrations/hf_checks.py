"""Finds the Trainer that a callback belongs to, and refuses what cannot work under it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from transformers import TrainingArguments

from lowcomm.transport import Transport
from lowcomm.types import ConfigError

if TYPE_CHECKING:
    from transformers import Trainer


def check_equal_steps(transport: Transport, max_steps: int) -> None:
    """Raise ConfigError on every rank if the ranks are to take different numbers of steps."""
    planned = transport.gather([torch.tensor([max_steps])])[:, 0].tolist()
    if len(set(planned)) > 1:
        raise ConfigError(
            f"max_steps = {planned} of islands 0 to {len(planned) - 1} is not allowed: the Trainer's own logging would "
            "wait for ranks that have ended. Fix: the same TrainingArguments(max_steps=...) everywhere; a smaller "
            "dataset is then read more often"
        )


def check_arguments(args: TrainingArguments) -> None:
    """Raise ConfigError for settings with which islands would miss each other."""
    if args.auto_find_batch_size:
        raise ConfigError(
            "auto_find_batch_size = True is not allowed: an island that starts again would miss the others' syncs. "
            "Fix: give per_device_train_batch_size"
        )
    if args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs in one process (DataParallel) are not allowed. Fix: start one process per GPU: torchrun"
        )


def calling_trainer() -> Trainer:
    """The Trainer in whose constructor this runs.

    It hands its callbacks all its parts but the accelerator, which decides how the model is wrapped, and its log.
    """
    from transformers import Trainer

    frame = inspect.currentframe()
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer):
            return found
        frame = frame.f_back
    raise ConfigError("LowCommCallback belongs to a transformers Trainer. Fix: Trainer(..., callbacks=[...])")
