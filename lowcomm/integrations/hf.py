"""transformers' Trainer, and TRL's: a callback makes each process an island.

    Trainer(model=model, args=args, train_dataset=data, callbacks=[LowCommCallback(every=100)]).train()

Start it under torchrun. What it changes in the Trainer, and why:

- DDP spans the ranks of one island only, so that gradients, buffers and first weights do not cross between islands;
- `average_tokens_across_devices` is off, and what a loss function gathers for its metrics (TRL's does) stays inside the
  island: either would wait for all islands in every step;
- evaluation and checkpoints hold the global weights, and training goes on from the island's own;
- `checkpoint-N/lowcomm/` has every rank's state as safetensors and JSON (see lowcomm.round.saved), from which
  `train(resume_from_checkpoint=...)` goes on to the bits of a run that never stopped;
- the last merge comes with the last step; a training that is stopped before it merges at its end, after saving.

Losses that the Trainer logs are means over all ranks: logging waits for all islands, once per `logging_steps`. Each
process still gets its own part of the data. Sites without a common file system need `save_on_each_node=True`.
"""

# Its events are called with these keywords. One that a later version adds must fail a test, not vanish in **kwargs.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lowcomm.aggregate import Aggregator
from lowcomm.codec import Codec
from lowcomm.integrations.accelerate import bare, check_accelerator, confine, gather_inside
from lowcomm.integrations.groups import IslandGroups
from lowcomm.integrations.log import log_line
from lowcomm.integrations.settings import Settings
from lowcomm.outer import Outer
from lowcomm.round import saved
from lowcomm.round.coverage import BufferRule
from lowcomm.round.landing import SyncReport
from lowcomm.run.finale import holding_global_weights
from lowcomm.schedule import Schedule
from lowcomm.sync import LocalSGD
from lowcomm.types import CheckpointError, ConfigError

if TYPE_CHECKING:
    from transformers import Trainer

DIRECTORY = "lowcomm"
"""Inside each of the Trainer's checkpoints."""


class LowCommCallback(TrainerCallback):
    """Train every process (or `island_size` of them) alone for `every` steps, then merge; repeat.

    Args: as of LocalSGD, and
        island_size: ranks per island; consecutive ranks are one island, with DDP inside.
        resume_from: the checkpoint that `train(resume_from_checkpoint=...)` names, if it is not in `args.output_dir`.

    Raises ConfigError when the Trainer is made for what cannot work; from training, what LocalSGD raises.
    """

    def __init__(
        self,
        *,
        every: int,
        outer: Outer | None = None,
        codec: Codec | None = None,
        schedule: Schedule | None = None,
        aggregator: Aggregator | None = None,
        buffers: Mapping[str, BufferRule] | None = None,
        outer_device: torch.device | str | None = None,
        seed: int = 0,
        island_size: int = 1,
        resume_from: Path | str | None = None,
    ) -> None:
        self.settings = Settings.of(
            every=every,
            outer=outer,
            codec=codec,
            schedule=schedule,
            aggregator=aggregator,
            buffers=buffers,
            outer_device=outer_device,
            seed=seed,
        )
        self.island_size = island_size
        self.resume_from = None if resume_from is None else Path(resume_from)
        self.sync: LocalSGD | None = None
        """Once training has begun."""
        self._trainer: Trainer | None = None
        self._groups: IslandGroups | None = None
        self._held = ExitStack()
        self._reports: list[SyncReport] = []
        self._finished = False

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module,
        processing_class: object, optimizer: object, lr_scheduler: object, train_dataloader: object,
        eval_dataloader: object,
    ) -> None:  # fmt: skip
        """Refuse what cannot work, and keep DDP inside the island."""
        trainer = _calling_trainer()
        check_accelerator(trainer.accelerator)
        _check_arguments(args)
        args.average_tokens_across_devices = False
        self._groups = confine(trainer.accelerator, island_size=self.island_size)
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module,
        processing_class: object, optimizer: Optimizer, lr_scheduler: object, train_dataloader: object,
        eval_dataloader: object,
    ) -> None:  # fmt: skip
        """Attach to the optimizer that the Trainer has made, and load this rank's state if it goes on from a stop."""
        from accelerate.data_loader import DataLoaderDispatcher

        if self._trainer is None or self._groups is None:
            raise ConfigError("LowCommCallback came after the Trainer was made. Fix: Trainer(..., callbacks=[...])")
        if isinstance(train_dataloader, DataLoaderDispatcher):
            raise ConfigError(
                "dispatch_batches = True is not allowed: rank 0 would send every batch to every island. "
                "Fix: TrainingArguments(accelerator_config={'dispatch_batches': False}) and a dataset split by rank"
            )
        if self.sync is not None:
            raise ConfigError("train() was called before. Fix: make a new Trainer with a new LowCommCallback")
        self.sync = self.settings.attach(model, bare(optimizer), self._groups)
        self.sync.listeners.append(self._reports.append)
        if state.global_step > 0:
            self._resume(self.sync, args, state.global_step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module,
        processing_class: object, optimizer: object, lr_scheduler: object, train_dataloader: object,
        eval_dataloader: object,
    ) -> None:  # fmt: skip
        """The island's own weights, and metrics of its own."""
        assert self._trainer is not None and self._groups is not None
        self._held.close()
        accelerator: Any = self._trainer.accelerator
        accelerator.gather = accelerator.gather_for_metrics = gather_inside(self._groups)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module,
        processing_class: object, optimizer: object, lr_scheduler: object, train_dataloader: object,
        eval_dataloader: object,
    ) -> None:  # fmt: skip
        """Log what was merged; merge the rest at the last step; show evaluation and checkpoint the global weights."""
        assert self._trainer is not None
        for name in ("gather", "gather_for_metrics"):
            vars(self._trainer.accelerator).pop(name, None)
        if state.global_step >= state.max_steps:
            self._finish()
        self._log(control)
        self._hold(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module,
        processing_class: object, optimizer: object, lr_scheduler: object, train_dataloader: object,
        eval_dataloader: object,
    ) -> None:  # fmt: skip
        """A training that stops early merges here, after its last checkpoint and before the best one is loaded."""
        if control.should_training_stop:
            self._finish()
            self._log(control)
        self._hold(control)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module,
        processing_class: object, optimizer: object, lr_scheduler: object, train_dataloader: object,
        eval_dataloader: object,
    ) -> None:  # fmt: skip
        """Write this rank's state beside the Trainer's, whose weights are the global ones."""
        self._held.close()
        if self.sync is not None and not args.save_only_model:
            directory = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / DIRECTORY
            saved.save(self.sync, directory, self.settings.describe(self.sync))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module,
        processing_class: object, optimizer: object, lr_scheduler: object, train_dataloader: object,
        eval_dataloader: object,
    ) -> None:  # fmt: skip
        """From here on the model holds the global weights."""
        self._finish()
        self._log(control)

    def _finish(self) -> None:
        self._held.close()
        if self.sync is not None and not self._finished:
            self.sync.finish()
            self._finished = True

    def _hold(self, control: TrainerControl) -> None:
        self._held.close()
        if self.sync is not None and (control.should_save or control.should_evaluate):
            self._held.enter_context(holding_global_weights(self.sync))

    def _log(self, control: TrainerControl) -> None:
        """Each sync as a line of the Trainer's log, past what a subclass adds to its own lines (TRL's averages)."""
        from transformers import Trainer

        due, reports = control.should_log, list(self._reports)
        self._reports.clear()
        for report in reports:
            assert self._trainer is not None and self.sync is not None
            Trainer.log(self._trainer, log_line(self.sync, report))
        control.should_log = due  # or the line of this step would count as written

    def _resume(self, sync: LocalSGD, args: TrainingArguments, step: int) -> None:
        found = self.resume_from or Path(str(args.output_dir)) / f"checkpoint-{step}"
        if not (found / DIRECTORY).is_dir():
            raise CheckpointError(
                f"the Trainer goes on from step {step}, but {found} has no state of the islands. "
                "Fix: LowCommCallback(resume_from=...) with the directory given to train(), or start anew"
            )
        before = {n: p.detach().clone() for n, p in sync.replicas[0].held.items()}
        saved.load(sync, found / DIRECTORY, step, self.settings.describe(sync))
        for name, view in sync.weights().items():
            if not torch.equal(view.to(before[name]), before[name]):
                raise CheckpointError(
                    f"{name} in {found / DIRECTORY} is not what the Trainer loaded: that was another checkpoint. "
                    "Fix: LowCommCallback(resume_from=...) with the directory given to train()"
                )


def _check_arguments(args: TrainingArguments) -> None:
    if args.auto_find_batch_size:
        raise ConfigError(
            "auto_find_batch_size = True is not allowed: an island that starts again would miss the others' syncs. "
            "Fix: give per_device_train_batch_size"
        )
    if args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs in one process (DataParallel) are not allowed. Fix: start one process per GPU: torchrun"
        )


def _calling_trainer() -> Trainer:
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
