"""FedAvg in lowcomm with trivial work: ROUNDS CLIENTS. Every check that a sync makes is on."""

from __future__ import annotations

import copy

import torch

from benchmarks.peers.trivial_work import RATE, features, model, rounds_and_clients, targets, tell, timed
from lowcomm.presets import FedAvg


def main() -> None:
    """All clients are models of one process."""
    rounds, clients = rounds_and_clients()
    first = model()
    models = [copy.deepcopy(first) for _ in range(clients)]
    inners = [torch.optim.SGD(m.parameters(), lr=RATE) for m in models]
    data = [(features(k), targets(k)) for k in range(clients)]
    FedAvg(models, inners, every=1)

    def one_round() -> None:
        for own, inner, (inputs, wanted) in zip(models, inners, data, strict=True):
            torch.nn.functional.mse_loss(own(inputs), wanted).backward()
            inner.step()  # a hook counts and syncs
            inner.zero_grad()

    ends_s = timed(rounds, one_round)
    tell(ends_s, models[0].weight.detach())


if __name__ == "__main__":
    main()
