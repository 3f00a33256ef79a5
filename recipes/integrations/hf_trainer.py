"""transformers' Trainer whose processes are islands: one callback.

torchrun --nproc-per-node 2 recipes/integrations/hf_trainer.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import Trainer, TrainingArguments

import lowcomm as lc
from lowcomm.integrations import example
from lowcomm.integrations.hf import LowCommCallback


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and say what this island ended with."""
    parser = example.options(__doc__)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    options = parser.parse_args(arguments)
    data = example.load_text(options.text)
    args = TrainingArguments(
        output_dir=str(options.output),
        max_steps=options.steps,
        per_device_train_batch_size=example.BATCH_SIZE,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        logging_steps=options.every,
        save_steps=2 * options.every,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )
    callback = LowCommCallback(
        every=options.every,
        outer=lc.outer.Nesterov(lr=0.7, momentum=0.6),
        codec=lc.codec.ErrorFeedback(codec=lc.codec.Int4()),
    )
    trainer = Trainer(
        model=example.nano(data),
        args=args,
        train_dataset=example.rows(data, 1024),  # pyright: ignore[reportArgumentType] - a list is a dataset
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=options.resume)
    trainer.save_model(str(options.output / "final"))  # the global weights

    assert callback.sync is not None
    example.report(callback.sync.state)


if __name__ == "__main__":
    main()
