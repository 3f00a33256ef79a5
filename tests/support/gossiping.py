"""Islands in gossip on the toy problem: what each has after every round, simulated or in processes."""

from __future__ import annotations

from lowcomm.codec import Codec, Fp32, Int4, TopK
from lowcomm.exchange.gossip import Gossip
from lowcomm.outer import SGD, Nesterov, Outer
from lowcomm.state.digest import sha256_weights
from lowcomm.sync import LocalSGD
from lowcomm.topology import Exponential, RandomPairs, Ring, Topology
from lowcomm.transport import Transport
from tests.support import toy

CASES: dict[str, tuple[Topology, Codec, Outer]] = {
    "ring, fp32, D-SGD": (Ring(), Fp32(), SGD(lr=1.0)),
    "ring, int4, momentum": (Ring(), Int4(), Nesterov(lr=0.7, momentum=0.5)),
    "pairs, top-k": (RandomPairs(), TopK(chunk=64, k=8), SGD(lr=1.0)),
    "exponential, stochastic int4": (Exponential(), Int4(rounding="stochastic"), SGD(lr=1.0)),
}


def build(
    islands: int,
    topology: Topology,
    codec: Codec | None = None,
    outer: Outer | None = None,
    transport: Transport | None = None,
    local: int | None = None,
    gamma: float | None = None,
) -> LocalSGD:
    """`islands` in this process, or `local` of them where there is a transport."""
    models = [toy.Net() for _ in range(islands if local is None else local)]
    return LocalSGD(
        models,
        [toy.adamw(m) for m in models],
        every=toy.EVERY,
        outer=outer or SGD(lr=1.0),
        codec=codec or Fp32(),
        exchange=Gossip(topology=topology, gamma=gamma),
        transport=transport,
        seed=5,
    )


def anchors(sync: LocalSGD) -> dict[int, str]:
    """Hash of every local island's anchor."""
    return {k: sha256_weights(dict(sync.state.anchor_of(0, i).named)) for i, k in enumerate(sync.transport.local)}


def trajectory(sync: LocalSGD, steps: int = toy.STEPS) -> dict[str, list[object]]:
    """By island: its anchor after every round, its model at the end, the mean, the distance, and counted bytes."""
    seen: dict[str, list[object]] = {str(k): [] for k in sync.transport.local}

    def keep(report: object) -> None:
        for k, digest in anchors(sync).items():
            seen[str(k)].append(digest)

    sync.listeners.append(keep)
    for step in range(steps):
        toy.train_step(sync, step)
    sync.finish()
    assert sync.state.consensus is not None
    for i, k in enumerate(sync.transport.local):
        model = sha256_weights(dict(sync.replicas[i].held))
        mean, distance = sha256_weights(sync.weights()), sync.state.consensus.distance
        seen[str(k)] += [model, mean, distance, sync.transport.sent_bytes[i], sync.transport.received_bytes[i]]
    return seen
