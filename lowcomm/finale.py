"""Evaluation of the global weights, export, and the summary of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError

from lowcomm.assembly import Run
from lowcomm.digest import sha256_weights
from lowcomm.lora_sync import at_server_scale
from lowcomm.model import merge_tuning, token_losses
from lowcomm.privacy_spent import privacy_spent
from lowcomm.run_dir import write_json
from lowcomm.sync import LocalSGD
from lowcomm.types import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Loss in nats per token and bits per byte of the text that the tokens stand for."""

    loss: float
    bits_per_byte: float


@contextmanager
def holding_global_weights(sync: LocalSGD) -> Iterator[None]:
    """Within, the first model holds the global weights: fragments come at different steps and may have trained on."""
    sync.wait()
    own = [p for f in sync.fragments for p in sync.replicas[0].tensors(f)]
    merged = [view for f in sync.fragments for view in f.outer_params]
    kept = [p.detach().clone() for p in own]
    with torch.no_grad():
        for p, view in zip(own, merged, strict=True):
            p.copy_(view)
    try:
        with at_server_scale(sync):
            yield
    finally:
        with torch.no_grad():
            for p, old in zip(own, kept, strict=True):
                p.copy_(old)


@torch.no_grad()
def evaluate(run: Run) -> Evaluation:
    """Validation loss; the batches are shared out over the processes and summed in batch order: the same bits."""
    batches = run.data.validation_batches()
    transport = run.sync.transport
    alone = len(transport.local) == transport.islands
    mine = range(len(batches)) if alone else range(transport.local[0], len(batches), transport.islands)
    island = run.islands[0]
    island.model.eval()
    sums = torch.zeros(len(batches), 3, dtype=torch.float64)
    for index, (inputs, targets) in enumerate(batches):
        if index in mine:
            losses = token_losses(island.model, inputs.to(island.device), targets.to(island.device))
            text_bytes = run.data.token_bytes[targets].sum()
            sums[index] = torch.tensor([float(losses.double().sum()), float(targets.numel()), float(text_bytes)])
    island.model.train()
    zeros = torch.zeros_like(sums)
    rows = [sums.flatten()] + [zeros.flatten()] * (len(transport.local) - 1)
    total = transport.gather(rows).sum(dim=0).view_as(sums).sum(dim=0)
    nats, tokens, text_bytes = total.tolist()
    return Evaluation(loss=nats / tokens, bits_per_byte=nats / math.log(2) / max(text_bytes, 1.0))


def export(run: Run) -> None:
    """Write the global weights and the tokenizer as a transformers directory (island 0 only).

    Raises CheckpointError if it can't be written.
    """
    if run.world.rank != 0 or not run.config.checkpoint.export:
        return
    from transformers.utils import logging

    directory: Path = run.directory / "export"
    model = cast("PreTrainedModel", merge_tuning(run.islands[0].model))
    logging.disable_progress_bar()  # one shard of weights needs no bar of its own
    try:
        model.save_pretrained(directory)
        run.data.save_tokenizer(directory)
    except (OSError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"the export could not be written to {directory}: {cause}. Fix: free some space and continue with --resume"
        ) from error


def write_summary(run: Run, status: str, wall_s: float, evaluation: Evaluation | None = None) -> None:
    """summary.json. With an evaluation every island takes part, since means over islands are asked for."""
    sync, transport, late = run.sync, run.sync.transport, run.sync.deadlines
    rows = [
        torch.tensor(
            [
                *(r.tokens, transport.sent_bytes[i], transport.received_bytes[i], sync.blocked_s, sync.sync_s, wall_s),
                *(late.misses, late.waited_s, late.peak_bytes_per_s or 0.0, transport.link_bytes_per_s or math.inf),
            ],
            dtype=torch.float64,
        )
        for i, r in enumerate(sync.replicas)
    ]
    table = torch.stack(rows)
    if evaluation is not None:
        table = transport.gather(rows)
    if run.world.rank != 0:
        return
    tokens, sent, received, blocked_s, sync_s, wall, _, waited_s, _, _ = table.mean(dim=0).tolist()
    misses, peak, link = int(table[:, 6].sum()), float(table[:, 8].max()), float(table[:, 9].min())
    parameters = list(run.islands[0].model.parameters())
    write_json(
        run.directory / "summary.json",
        {
            "status": status,
            "name": run.config.name,
            "parameters": sum(p.numel() for p in parameters),
            "parameters_trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "val_loss": evaluation.loss if evaluation else None,
            "val_bpb": evaluation.bits_per_byte if evaluation else None,
            "tokens": round(tokens * transport.islands),
            "steps": sync.step,
            "rounds": sync.round,
            "islands": transport.islands,
            "bytes_sent": round(sent),
            "bytes_received": round(received),
            "wall_s": wall,
            "blocked_s": blocked_s,
            "sync_s": sync_s,
            "utilisation": 1 - blocked_s / wall if wall > 0 else None,
            "deadline_misses": misses,
            "deadline_waited_s": waited_s,
            "peak_bytes_per_s": peak or None,
            "link_bytes_per_s": link if math.isfinite(link) else None,
            "weights_sha256": sha256_weights(sync.weights()),
            "privacy": privacy_spent(sync.codec, sum(f.numel for f in sync.fragments), sync.round),
        },
    )
