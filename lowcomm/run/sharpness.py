"""Average-direction sharpness: what the loss gains, on average, from the islands' mean to where the islands are.

Zhu et al., Decentralized SGD and Average-direction SAM are Asymptotically Equivalent, arXiv 2306.02913.

    s = mean_k L(a_k) - L(mean_k a_k)

a_k: the weights of the islands that are there. The paper perturbs the mean by a normal vector with the islands' own
covariance; here the perturbations are the islands themselves, of the same second moment: equal to second order, half of
tr(H Cov). That is what gossip minimises beside the loss; near 0, islands have nothing left of their spread.
Cost: the validation text once more for each island, shared out as it is; no bytes but a row of sums.
"""

from __future__ import annotations

import torch

from lowcomm.run.assembly import Run
from lowcomm.types import IGNORED


@torch.no_grad()
def average_direction_sharpness(run: Run, mean_loss: float) -> float | None:
    """In nats per token. mean_loss: of the mean, on the same text. None where islands share their weights.

    Every island calls it alike, at the end of a round: models then hold the islands' own weights.
    """
    state, transport = run.sync.state, run.sync.transport
    if state.exchange.stands_for_all == "first":
        return None
    rows: list[torch.Tensor] = []
    for local, island in enumerate(run.islands):
        kept = [p.detach().clone() for f in state.fragments for p in state.replicas[local].tensors(f)]
        for index in range(len(state.fragments)):
            state.anchor_of(index, local).write(state.tensors(index, [local]))
        island.model.eval()
        nats = tokens = 0.0
        for inputs, targets in run.data.validation_batches():
            nats += float(island.token_losses(inputs, targets).double().sum())
            tokens += float((targets != IGNORED).sum())
        island.model.train()
        held = [p for f in state.fragments for p in state.replicas[local].tensors(f)]
        for p, old in zip(held, kept, strict=True):
            p.copy_(old)
        rows.append(torch.tensor([nats / tokens], dtype=torch.float64))
    losses = transport.gather(rows)
    absent = state.exchange.absent()
    there = [k for k in transport.present if k not in absent]
    return float(losses[there].mean()) - mean_loss
