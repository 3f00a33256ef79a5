"""A plain PyTorch loop whose processes are islands.

torchrun --nproc-per-node 2 recipes/integrations/plain.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler

import lowcomm as lc
from lowcomm.integrations import example


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and say what this island ended with."""
    options = example.options(__doc__).parse_args(arguments)
    dist.init_process_group("gloo")
    data = example.load_text(options.text)
    rows = example.rows(data, options.steps * example.BATCH_SIZE * dist.get_world_size())
    sampler = DistributedSampler(rows)  # pyright: ignore[reportArgumentType] - a list is a dataset
    loader = DataLoader(rows, batch_size=example.BATCH_SIZE, sampler=sampler)  # pyright: ignore[reportArgumentType]
    model = example.nano(data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    sync = lc.LocalSGD(model, optimizer, every=options.every, outer=lc.outer.Nesterov(lr=0.7, momentum=0.6))
    for batch in loader:
        model(**batch).loss.backward()
        optimizer.step()  # a hook counts and syncs
        optimizer.zero_grad()
    sync.finish()  # the last merge: every island now holds the same weights

    example.report(sync.state)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
