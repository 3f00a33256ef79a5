"""An Accelerate loop whose processes are islands; 4 bits per update.

torchrun --nproc-per-node 2 recipes/integrations/accelerate_loop.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import lowcomm as lc
from lowcomm.integrations import example
from lowcomm.integrations.accelerate import attach, confine


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and say what this island ended with."""
    options = example.options(__doc__).parse_args(arguments)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=2)
    data = example.load_text(options.text)
    micro = example.BATCH_SIZE // 2
    rows = example.rows(data, options.steps * example.BATCH_SIZE * accelerator.num_processes)
    loader = DataLoader(rows, batch_size=micro, shuffle=True)  # pyright: ignore[reportArgumentType] - a list is a dataset
    model = example.nano(data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    confine(accelerator)  # DDP stays inside the island, here of one process
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    codec = lc.codec.ErrorFeedback(codec=lc.codec.Int4())
    sync = attach(accelerator, model, optimizer, every=options.every, codec=codec)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    sync.finish()

    example.report(sync.state)
    accelerator.end_training()


if __name__ == "__main__":
    main()
