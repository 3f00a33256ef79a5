"""Lightning: a callback makes each process of a DDP strategy an island.

    Trainer(devices=2, strategy="ddp", callbacks=[LowCommCallback(every=100)]).fit(module)

What it changes, and why: DDP spans the ranks of one island only; validation sees the global weights, and so does every
state_dict of the module, so that checkpoints hold them, weights-only ones too; beside them, `DIRECTORY/STEP/` has each
rank's state as safetensors and JSON (see lowcomm.sync.saved), from which `fit(ckpt_path=...)` goes on. The last
merge comes with the last step. Lightning saves neither random states nor the place inside an epoch: a run resumed from
the end of an epoch, without dropout, is the run that never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from lowcomm.aggregate import Aggregator
from lowcomm.codec import Codec
from lowcomm.integrations.groups import IslandGroups
from lowcomm.integrations.settings import Settings
from lowcomm.outer import Outer
from lowcomm.run.finale import with_global_weights
from lowcomm.schedule import Schedule
from lowcomm.state.report import SyncReport
from lowcomm.state.spec import BufferRule
from lowcomm.sync import LocalSGD, saved
from lowcomm.sync.reporting import log_line
from lowcomm.types import ConfigError


class LowCommCallback(Callback):
    """Train every process (or `island_size` of them) alone for `every` optimizer steps, then merge; repeat.

    Args: as of LocalSGD, and
        island_size: ranks per island; consecutive ranks are one island, with DDP inside.
        directory: of the islands' states; None: lowcomm/ in the trainer's default_root_dir.

    Raises ConfigError from fit() for what cannot work, and what LocalSGD raises.
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
        directory: Path | str | None = None,
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
        if self.settings.schedule(1, every).average_gradients:
            raise ConfigError(
                f"schedule = {self.settings.schedule} averages gradients before the optimizer's step, but Lightning "
                "computes them inside it. Fix: another schedule"
            )
        self.island_size = island_size
        self.directory = None if directory is None else Path(directory)
        self.sync: LocalSGD | None = None
        """Once training has begun."""
        self._groups: IslandGroups | None = None
        self._held = ExitStack()
        self._shows_global = False
        self._reports: list[SyncReport] = []
        self._finished = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work, and keep DDP inside the island: there is a process group now, and no DDP yet."""
        if stage != "fit":
            return
        if trainer.precision in ("16-mixed", "16-true"):
            raise ConfigError(
                f"precision = {trainer.precision!r} is not allowed: its loss scaler skips steps on single islands, "
                "which would then wait for each other for ever. Fix: use 'bf16-mixed'"
            )
        strategy = trainer.strategy
        if trainer.world_size > 1 and not isinstance(strategy, DDPStrategy):
            raise ConfigError(f"strategy = {type(strategy).__name__} is not allowed. Fix: strategy='ddp'")
        self._groups = IslandGroups.build(self.island_size)
        if isinstance(strategy, DDPStrategy):
            strategy._ddp_kwargs["process_group"] = self._groups.inside  # the arguments of DDP that it was made with

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the optimizer, and load this rank's state if training goes on from a checkpoint."""
        assert self._groups is not None
        if len(trainer.optimizers) != 1:
            raise ConfigError(
                f"{len(trainer.optimizers)} optimizers are not allowed: steps of one are counted. Fix: use one"
            )
        if self.sync is not None:
            raise ConfigError("fit() was called before. Fix: make a new Trainer with a new LowCommCallback")
        self.sync = sync = self.settings.attach(pl_module, trainer.optimizers[0], self._groups)
        sync.listeners.append(self._reports.append)
        if trainer.global_step > 0:
            saved.load(
                sync.state, self._directory(trainer), trainer.global_step, self.settings.describe(sync.transport)
            )
        pl_module.register_state_dict_post_hook(lambda _, state, prefix, __: self._show_global_weights(state, prefix))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Merge the rest at the last step, before validation and checkpoint; log what was merged."""
        ends = trainer.is_last_batch and trainer.max_epochs is not None and trainer.max_epochs > 0
        if trainer.global_step >= trainer.max_steps > 0 or (ends and trainer.current_epoch + 1 == trainer.max_epochs):
            self._finish()
        self._log(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A training that is told to stop merges at the end of its epoch."""
        if trainer.should_stop:
            self._finish()
        self._log(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation inside training sees the global weights."""
        self._show_global(True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Back to the island's own."""
        self._show_global(False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write this rank's state; Lightning calls it on every rank."""
        if self.sync is not None:
            shown = self._shows_global
            self._show_global(False)
            saved.save(self.sync.state, self._directory(trainer), self.settings.describe(self.sync.transport))
            self._show_global(shown)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on the module holds the global weights."""
        self._finish()
        self._log(trainer)

    def _finish(self) -> None:
        self._show_global(False)
        if self.sync is not None and not self._finished:
            self.sync.finish()
            self._finished = True

    def _show_global(self, on: bool) -> None:
        self._held.close()
        self._shows_global = on and self.sync is not None and not self._finished
        if self._shows_global and self.sync is not None:
            self._held.enter_context(with_global_weights(self.sync.state))

    def _show_global_weights(self, state: dict[str, Tensor], prefix: str) -> None:
        """Put the global weights into a state_dict of the module, whose tensors share memory with its parameters."""
        if self.sync is None or self._finished or prefix:
            return
        with with_global_weights(self.sync.state):
            for key, tensor in list(state.items()):
                state[key] = tensor.detach().clone()

    def _log(self, trainer: Trainer) -> None:
        reports, self._reports[:] = list(self._reports), []
        for report in reports:
            assert self.sync is not None
            for logger in trainer.loggers:
                logger.log_metrics(log_line(self.sync.transport, report), step=trainer.global_step)

    def _directory(self, trainer: Trainer) -> Path:
        return self.directory or Path(trainer.default_root_dir) / "lowcomm"
