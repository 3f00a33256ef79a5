"""FedAvg in lowcomm with trivial work: ROUNDS CLIENTS SAMPLED. Every check that a sync makes is on."""

from __future__ import annotations

import torch

from benchmarks.peers.trivial_work import RATE, features, model, rounds_and_clients, targets, tell, timed
from lowcomm.outer import SGD
from lowcomm.sampling import FixedSize
from lowcomm.state.spec import Clients, SyncSpec
from lowcomm.sync import LocalSGD
from lowcomm.transport import Simulated


def main() -> None:
    """All clients take turns on one model of this process."""
    rounds, clients, sampled = rounds_and_clients()
    net = model()
    inners = [torch.optim.SGD(net.parameters(), lr=RATE) for _ in range(clients)]
    data = [(features(k), targets(k)) for k in range(clients)]
    sampling = None if sampled == clients else FixedSize(count=sampled)
    spec = SyncSpec(every=1, outer=SGD(lr=1.0), clients=Clients(sampling=sampling))
    sync = LocalSGD.of(spec, [net], inners, transport=Simulated(clients), turns=True)

    def one_round() -> None:
        resting = {k for k in range(clients) if sync.rests(k)}
        if resting:
            sync.rest(*resting)
        for k in range(clients):
            if k in resting:
                continue
            inner, (inputs, wanted) = inners[k], data[k]
            sync.take_turn(k, train=True)
            torch.nn.functional.mse_loss(net(inputs), wanted).backward()
            inner.step()  # a hook counts and syncs
            inner.zero_grad()

    ends_s = timed(rounds, one_round)
    tell(ends_s, sync.weights()["weight"])


if __name__ == "__main__":
    main()
