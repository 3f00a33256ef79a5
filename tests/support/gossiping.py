"""Islands in gossip on the toy problem: what each has after every round, simulated or in processes."""

from __future__ import annotations

from lowcomm.codec import Codec, Fp32, Int4, TopK
from lowcomm.exchange.base import ExchangeChoice
from lowcomm.exchange.gossip import Gossip
from lowcomm.exchange.modest import Modest
from lowcomm.mixing import GASLoC, NoLoCo, Overlapped
from lowcomm.outer import SGD, Nesterov, Outer
from lowcomm.state.digest import sha256_weights
from lowcomm.sync import LocalSGD
from lowcomm.topology import Churn, Exponential, Loss, Multigraph, OnePeer, RandomPairs, Ring, Topology
from lowcomm.transport import Transport
from tests.support import toy

CHURN = Churn(losses=(Loss(round=1, nodes=(2,), rounds=1), Loss(round=2, links=((0, 1),))))
CASES: dict[str, tuple[ExchangeChoice, Codec, Outer]] = {
    "ring, fp32, D-SGD": (Gossip(topology=Ring()), Fp32(), SGD(lr=1.0)),
    "ring, int4, momentum": (Gossip(topology=Ring()), Int4(), Nesterov(lr=0.7, momentum=0.5)),
    "pairs, top-k": (Gossip(topology=RandomPairs()), TopK(chunk=64, k=8), SGD(lr=1.0)),
    "exponential, stochastic int4": (Gossip(topology=Exponential()), Int4(rounding="stochastic"), SGD(lr=1.0)),
    "pairs, NoLoCo": (Gossip(topology=RandomPairs(), rule=NoLoCo()), Fp32(), SGD(lr=1.0)),
    "ring, overlapped, int4": (Gossip(rule=Overlapped()), Int4(), SGD(lr=1.0)),
    "one peer, two steps": (Gossip(topology=OnePeer(), steps=2), Fp32(), SGD(lr=1.0)),
    "ring, GASLoC, memory, churn": (Gossip(rule=GASLoC(), memory=0.9, churn=CHURN), Int4(), SGD(lr=1.0)),
    "multigraph": (Gossip(topology=Multigraph(delay_s=(1.0, 1.0, 2.0, 4.0))), Fp32(), SGD(lr=1.0)),
    "MoDeST": (Modest(sample=2, churn=Churn(losses=(Loss(round=1, nodes=(3,)),))), Fp32(), SGD(lr=1.0)),
}


def build(
    islands: int,
    topology: Topology | None = None,
    codec: Codec | None = None,
    outer: Outer | None = None,
    transport: Transport | None = None,
    local: int | None = None,
    gamma: float | None = None,
    choice: ExchangeChoice | None = None,
) -> LocalSGD:
    """`islands` in this process, or `local` of them where there is a transport."""
    models = [toy.Net() for _ in range(islands if local is None else local)]
    return LocalSGD(
        models,
        [toy.adamw(m) for m in models],
        every=toy.EVERY,
        outer=outer or SGD(lr=1.0),
        codec=codec or Fp32(),
        exchange=choice or Gossip(topology=topology or Ring(), gamma=gamma),
        transport=transport,
        seed=5,
    )


def build_case(case: str, transport: Transport | None = None, local: int | None = None) -> LocalSGD:
    """Four islands of CASES."""
    choice, codec, outer = CASES[case]
    return build(4, None, codec, outer, transport, local, choice=choice)


def train_step(sync: LocalSGD, step: int) -> None:
    """One inner step of every local island that does not rest."""
    if any(sync.rests(i) for i in range(len(sync.replicas))):
        for i, (replica, island) in enumerate(zip(sync.replicas, sync.transport.local, strict=True)):
            if sync.rests(i):
                sync.rest(i)
                continue
            x, y = toy.batch(island, step)
            (replica.model(x) - y).square().mean().backward()
            sync.count_tokens(len(x), i)
            replica.inner.step()
            replica.inner.zero_grad()
        return
    toy.train_step(sync, step)


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
        train_step(sync, step)
    sync.finish()
    assert sync.state.consensus is not None
    for i, k in enumerate(sync.transport.local):
        model = sha256_weights(dict(sync.replicas[i].held))
        mean, distance = sha256_weights(sync.weights()), sync.state.consensus.distance
        seen[str(k)] += [model, mean, distance, sync.transport.sent_bytes[i], sync.transport.received_bytes[i]]
    return seen
