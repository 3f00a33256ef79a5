"""TRL's SFTTrainer whose processes are islands: the same callback as for transformers' Trainer.

torchrun --nproc-per-node 2 recipes/integrations/sft.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

import lowcomm as lc
from lowcomm.integrations import example
from lowcomm.integrations.hf import LowCommCallback


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and say what this island ended with."""
    options = example.options(__doc__).parse_args(arguments)
    data = example.load_text(options.text)
    options.output.mkdir(parents=True, exist_ok=True)
    data.save_tokenizer(options.output / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(options.output / "tokenizer", trust_remote_code=False)
    tokenizer.pad_token = tokenizer.eos_token
    args = SFTConfig(
        output_dir=str(options.output),
        max_steps=options.steps,
        per_device_train_batch_size=example.BATCH_SIZE,
        learning_rate=1e-3,
        logging_steps=options.every,
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        max_length=example.SEQ_LEN,
    )
    callback = LowCommCallback(every=options.every, outer=lc.outer.Nesterov(lr=0.7, momentum=0.6))
    examples = [row["input_ids"].tolist() for row in example.rows(data, 1024)]
    trainer = SFTTrainer(
        model=example.nano(data),
        args=args,
        train_dataset=Dataset.from_dict({"input_ids": examples}),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()

    assert callback.sync is not None
    example.report(callback.sync.state)


if __name__ == "__main__":
    main()
