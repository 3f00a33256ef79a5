"""What the global model gives away about each client's training sequences, for clients.json."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowcomm.assembly import Run
from lowcomm.data import Shard
from lowcomm.finale import holding_global_weights
from lowcomm.model import token_losses
from lowcomm.privacy.membership_inference import area_under_curve, hits_at

Batches = Sequence[tuple[Tensor, Tensor]]
COLUMNS = ("loss_auc", "loss_tpr_at_1pct_fpr", "calibrated_auc", "calibrated_tpr_at_1pct_fpr")


def attack(run: Run, fresh: nn.Module) -> dict[str, list[float]]:
    """By column, one number per client: its first training sequences against as many held-out ones. All islands call.

    fresh: the model before tuning, to which the calibrated attack compares.
    """
    transport, device = run.sync.transport, run.islands[0].device
    rows: list[Tensor] = []
    for k in transport.local:
        others = run.data.own_validation_batches(k)
        members = first_batches(run.data.shard(k), sum(len(inputs) for inputs, _ in others))
        with holding_global_weights(run.sync):
            after = [sequence_losses(run.islands[0].model, batches, device) for batches in (members, others)]
        before = [sequence_losses(fresh, batches, device) for batches in (members, others)]
        loss = [[-v for v in side] for side in after]
        calibrated = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(before, after, strict=True)]
        found = [f(ins, outs) for ins, outs in (loss, calibrated) for f in (area_under_curve, hits_at)]
        rows.append(torch.tensor(found, dtype=torch.float64))
    table = transport.gather(rows).tolist()
    return {column: [row[i] for row in table] for i, column in enumerate(COLUMNS)}


def first_batches(shard: Shard, sequences: int) -> Batches:
    """The first batches that a client trained on, with at least so many sequences."""
    found: list[tuple[Tensor, Tensor]] = []
    while sum(len(inputs) for inputs, _ in found) < sequences:
        found.append(shard.next_batch())
    return found


@torch.no_grad()
def sequence_losses(model: nn.Module, batches: Batches, device: torch.device) -> list[float]:
    """Nats per learnt token of each sequence."""
    training = model.training
    model.eval()
    found: list[float] = []
    for inputs, targets in batches:
        losses = token_losses(model, inputs.to(device), targets.to(device)).double().view(targets.shape)
        learnt = (targets >= 0).sum(dim=1).clamp(min=1).to(device)
        found += (losses.sum(dim=1) / learnt).tolist()
    model.train(training)
    return found
