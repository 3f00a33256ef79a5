"""DeepSpeed engines as islands.

DS_ACCELERATOR=cpu torchrun --nproc-per-node 2 recipes/integrations/deepspeed_engine.py
"""

from __future__ import annotations

from collections.abc import Sequence

import deepspeed
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler

import lowcomm as lc
import lowcomm.deepspeed
from lowcomm.integrations import example


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and say what this island ended with."""
    options = example.options(__doc__).parse_args(arguments)
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")
    data = example.load_text(options.text)
    rows = example.rows(data, options.steps * example.BATCH_SIZE * dist.get_world_size())
    sampler = DistributedSampler(rows)  # pyright: ignore[reportArgumentType] - a list is a dataset
    loader = DataLoader(rows, batch_size=example.BATCH_SIZE, sampler=sampler)  # pyright: ignore[reportArgumentType]
    config = {
        "train_micro_batch_size_per_gpu": example.BATCH_SIZE,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-3, "torch_adam": True}},
    }
    model = example.nano(data)
    islands = lowcomm.deepspeed.islands(size=1)  # ranks that share one engine: here each has its own
    engine, *_ = deepspeed.initialize(model=model, config=config, mpu=islands)

    outer = lc.outer.Nesterov(lr=0.7, momentum=0.6)
    sync = lowcomm.deepspeed.attach(engine, every=options.every, outer=outer)
    for batch in loader:
        loss = engine(**{key: value.to(engine.device) for key, value in batch.items()}).loss
        engine.backward(loss)
        engine.step()
    sync.finish()

    example.report(sync.state)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
