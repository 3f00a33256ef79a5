"""transformers' Trainer, and TRL's: a callback makes each process an island.

    Trainer(model=model, args=args, train_dataset=data, callbacks=[LowCommCallback(every=100)]).train()

Start it under torchrun. What it changes in the Trainer, and why:

- DDP spans the ranks of one island only, so that gradients, buffers and first weights do not cross between islands;
- `average_tokens_across_devices` is off, and what a loss function gathers for its metrics (TRL's does) stays inside the
  island: either would wait for all islands in every step;
- evaluation and checkpoints hold the global weights, whoever asks for them, and training goes on from the island's own;
- `checkpoint-N/lowcomm/` has every rank's state as safetensors and JSON (see lowcomm.sync.saved), from which
  `train(resume_from_checkpoint=...)` goes on to the bits of a run that never stopped;
- the last merge comes with the last step; a training that is stopped before it merges at its end, after saving. A stop
  that a callback asks for after a step comes at the end of the round, on all ranks alike, whichever of them asked.

Losses that the Trainer logs are means over all ranks: logging waits for all islands, once per `logging_steps`. Each
process still gets its own part of the data, which is one dataset on all of them; sites that have datasets of their own
pass `own_data=True`. Sites without a common file system need `save_on_each_node=True`.
"""

# Its events are called with these keywords. One that a later version adds must fail a test, not vanish in **kwargs.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
from lowcomm.integrations.hf_checks import calling_trainer, check_arguments, check_equal_steps
from lowcomm.integrations.own_data import keep_own_data
from lowcomm.integrations.settings import Settings
from lowcomm.integrations.stopping import StopTogether
from lowcomm.outer import Outer
from lowcomm.run.finale import with_global_weights
from lowcomm.schedule import Schedule
from lowcomm.state.report import SyncReport
from lowcomm.state.spec import BufferRule
from lowcomm.state.state import SyncState
from lowcomm.sync import LocalSGD, saved
from lowcomm.sync.reporting import log_line
from lowcomm.types import CheckpointError, ConfigError, require

if TYPE_CHECKING:
    from transformers import Trainer

DIRECTORY = "lowcomm"
"""Inside each of the Trainer's checkpoints."""


class LowCommCallback(TrainerCallback):
    """Train every process (or `island_size` of them) alone for `every` steps, then merge; repeat.

    Args: as of LocalSGD, and
        island_size: ranks per island; consecutive ranks are one island, with DDP inside.
        own_data: each rank's datasets are its own: none is dealt out by rank, and evaluation is each rank's own, too.
            All train for the same `max_steps`, whatever their data.
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
        own_data: bool = False,
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
        self.island_size, self.own_data = island_size, own_data
        ok = not own_data or island_size == 1
        require(ok, "island_size", island_size, "1 with own_data", "one rank per site, or leave own_data out")
        self.resume_from = None if resume_from is None else Path(resume_from)
        self.sync: LocalSGD | None = None
        """Once training has begun."""
        self._trainer: Trainer | None = None
        self._groups: IslandGroups | None = None
        self._held = ExitStack()
        self._reports: list[SyncReport] = []
        self._finished = False
        self._stop: StopTogether | None = None

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module,
        processing_class: object, optimizer: object, lr_scheduler: object, train_dataloader: object,
        eval_dataloader: object,
    ) -> None:  # fmt: skip
        """Refuse what cannot work, and keep DDP inside the island."""
        trainer = calling_trainer()
        check_accelerator(trainer.accelerator)
        check_arguments(args)
        args.average_tokens_across_devices = False
        self._groups = confine(trainer.accelerator, island_size=self.island_size)
        self._trainer = trainer
        if self.own_data:
            keep_own_data(trainer.accelerator, gather_inside(self._groups))
        for name in ("evaluate", "predict", "save_model", "_save_checkpoint"):  # whoever calls them, and whenever
            setattr(trainer, name, self._global_weights()(getattr(trainer, name)))

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
        check_equal_steps(self.sync.transport, state.max_steps)
        self._stop = StopTogether(self.sync.state)
        handler = self._trainer.callback_handler  # last, to see what the others want; a new list, as this one is walked
        handler.callbacks = [*(c for c in handler.callbacks if c is not self), self]
        if state.global_step > 0:
            self._resume(self.sync.state, args, state.global_step)

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
            if not self.own_data:
                vars(self._trainer.accelerator).pop(name, None)
        self._stop_all(state, control)
        if state.global_step >= state.max_steps:
            self._finish()
        self._log(control)
        self._show_global(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module,
        processing_class: object, optimizer: object, lr_scheduler: object, train_dataloader: object,
        eval_dataloader: object,
    ) -> None:  # fmt: skip
        """A training that stops early merges here, after its last checkpoint and before the best one is loaded."""
        if control.should_training_stop:
            self._finish()
            self._log(control)
        self._show_global(control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module,
        processing_class: object, optimizer: object, lr_scheduler: object, train_dataloader: object,
        eval_dataloader: object, metrics: object = None,
    ) -> None:  # fmt: skip
        """Of an evaluation that is this rank's own, the others do not know what a callback makes of it."""
        if self.own_data and control.should_training_stop and state.global_step < state.max_steps:
            control.should_training_stop = self._stop is None or self._stop.ask()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module,
        processing_class: object, optimizer: object, lr_scheduler: object, train_dataloader: object,
        eval_dataloader: object,
    ) -> None:  # fmt: skip
        """Write this rank's state beside the Trainer's, whose weights are the global ones."""
        self._held.close()
        if self.sync is not None and not args.save_only_model:
            directory = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / DIRECTORY
            saved.save(self.sync.state, directory, self.settings.describe(self.sync.transport))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module,
        processing_class: object, optimizer: object, lr_scheduler: object, train_dataloader: object,
        eval_dataloader: object,
    ) -> None:  # fmt: skip
        """From here on the model holds the global weights."""
        self._finish()
        self._log(control)

    def _stop_all(self, state: TrainerState, control: TrainerControl) -> None:
        if self._stop is not None and state.global_step < state.max_steps:
            due = self._stop.is_due()
            control.should_training_stop = due or (control.should_training_stop and self._stop.ask())

    @contextmanager
    def _global_weights(self) -> Iterator[None]:
        if self.sync is None or self._finished:
            yield
        else:
            with with_global_weights(self.sync.state):
                yield

    def _finish(self) -> None:
        self._held.close()
        if self.sync is not None and not self._finished:
            self.sync.finish()
            self._finished = True

    def _show_global(self, control: TrainerControl) -> None:
        self._held.close()
        if self.sync is not None and (control.should_save or control.should_evaluate):
            self._held.enter_context(with_global_weights(self.sync.state))

    def _log(self, control: TrainerControl) -> None:
        """Each sync as a line of the Trainer's log, past what a subclass adds to its own lines (TRL's averages)."""
        from transformers import Trainer

        due, reports = control.should_log, list(self._reports)
        self._reports.clear()
        for report in reports:
            assert self._trainer is not None and self.sync is not None
            Trainer.log(self._trainer, log_line(self.sync.transport, report))
        control.should_log = due  # or the line of this step would count as written

    def _resume(self, state: SyncState, args: TrainingArguments, step: int) -> None:
        found = self.resume_from or Path(str(args.output_dir)) / f"checkpoint-{step}"
        if not (found / DIRECTORY).is_dir():
            raise CheckpointError(
                f"the Trainer goes on from step {step}, but {found} has no state of the islands. "
                "Fix: LowCommCallback(resume_from=...) with the directory given to train(), or start anew"
            )
        before = {n: p.detach().clone() for n, p in state.replicas[0].held.items()}
        saved.load(state, found / DIRECTORY, step, self.settings.describe(state.transport))
        for name, view in state.weights().items():
            if not torch.equal(view.to(before[name]), before[name]):
                raise CheckpointError(
                    f"{name} in {found / DIRECTORY} is not what the Trainer loaded: that was another checkpoint. "
                    "Fix: LowCommCallback(resume_from=...) with the directory given to train()"
                )
