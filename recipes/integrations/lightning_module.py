"""A LightningModule whose processes are islands: one callback.

torchrun --nproc-per-node 2 recipes/integrations/lightning_module.py
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lowcomm as lc
from lowcomm.integrations import example
from lowcomm.integrations.lightning import LowCommCallback


class Language(LightningModule):
    """A causal language model of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of a batch, nats per token."""
        return self.model(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """What Lightning trains with."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and say what this island ended with."""
    options = example.options(__doc__).parse_args(arguments)
    data = example.load_text(options.text)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rows = example.rows(data, options.steps * example.BATCH_SIZE * world)
    loader = DataLoader(rows, batch_size=example.BATCH_SIZE, shuffle=True)  # pyright: ignore[reportArgumentType] - a list is a dataset
    callback = LowCommCallback(every=options.every, outer=lc.outer.Nesterov(lr=0.7, momentum=0.6))
    trainer = Trainer(
        accelerator="auto",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        strategy="ddp",
        max_steps=options.steps,
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=options.output,
    )
    trainer.fit(Language(example.nano(data)), loader)

    assert callback.sync is not None
    example.report(callback.sync.state)


if __name__ == "__main__":
    main()
