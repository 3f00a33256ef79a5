"""The methods of benchmarks/decentral.py: what each puts in the place of an all-reduce."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lowcomm.codec import Codec, Fp32, Int4, Int8
from lowcomm.config import SyncConfig
from lowcomm.exchange.base import ExchangeChoice
from lowcomm.exchange.gossip import Gossip
from lowcomm.exchange.modest import Modest
from lowcomm.local import SharpnessAware
from lowcomm.mixing import Cooperation, GASLoC, NoLoCo, Overlapped, VarianceCorrected
from lowcomm.outer import SGD, Nesterov, Outer
from lowcomm.schedule import EveryStep, LateMerge, Schedule
from lowcomm.topology import (
    BarabasiAlbert,
    Churn,
    Complete,
    Exponential,
    Loss,
    Multigraph,
    OnePeer,
    RandomPairs,
    RandomRegular,
    Ring,
    Torus,
)

EVERY, STEPS = 16, 640
SLOWER = (1, 1, 2, 4)
"""How many times longer islands need for a step, in turn; the other rows have equal ones."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One line of the table."""

    name: str
    topology: str
    sync: Callable[[int], SyncConfig]
    """By the number of islands."""
    only: int | None = None
    """Number of islands that it is for; None: any."""

    @property
    def first(self) -> bool:
        """Whether it is run for all numbers of islands before the others are for any."""
        return (self.name, self.topology) in FIRST

    @property
    def loops(self) -> bool:
        """Whether islands are trained one after another, as their steps differ."""
        sync = self.sync(16)
        return sync.objective is not None or isinstance(sync.exchange, Modest)


def _gossip(
    choice: Callable[[int], ExchangeChoice], outer: Outer | None = None, codec: Codec | None = None
) -> Callable[[int], SyncConfig]:
    return lambda n: SyncConfig(every=EVERY, outer=outer or SGD(lr=1.0), codec=codec or Fp32(), exchange=choice(n))


def _plain(outer: Outer, schedule: Schedule | None = None) -> Callable[[int], SyncConfig]:
    if schedule is None:
        return lambda n: SyncConfig(every=EVERY, outer=outer)
    return lambda n: SyncConfig(every=EVERY, outer=outer, schedule=schedule)


def _slow(islands: int) -> tuple[float, ...]:
    return tuple(float(SLOWER[k % len(SLOWER)]) for k in range(islands))


def _dead(islands: int) -> Churn:
    """From round 10 on, a quarter of the run, four of five are dead."""
    return Churn(losses=(Loss(round=10, nodes=tuple(range(islands * 4 // 5 + (islands * 4 % 5 > 0)))),))


def _hubs(islands: int) -> Churn:
    """The two islands with which a scale-free graph began are lost half-way through the run."""
    return Churn(losses=(Loss(round=20, nodes=(0, 1)),))


NESTEROV = Nesterov(lr=0.7, momentum=0.6)
FIRST = {
    ("DDP", "all"),
    ("DiLoCo", "all"),
    ("averaging", "all"),
    ("D-SGD, int8", "one peer"),
    ("D-SGD, Nesterov, int8", "one peer"),
    ("decentralised AdamW", "one peer"),
    ("NoLoCo", "random pairs"),
    ("D-SGD", "ring"),
    ("MoDeST, 80 % dead", "samples of 4"),
    ("D-SGD, 80 % dead", "one peer"),
}
METHODS: tuple[Method, ...] = (
    Method(name="DDP", topology="all", sync=_plain(SGD(lr=1.0), EveryStep())),
    Method(name="DiLoCo", topology="all", sync=_plain(NESTEROV)),
    Method(name="averaging", topology="all", sync=_plain(SGD(lr=1.0))),
    Method(name="D-SGD", topology="one peer", sync=_gossip(lambda n: Gossip(topology=OnePeer()))),
    Method(name="D-SGD, int8", topology="one peer", sync=_gossip(lambda n: Gossip(topology=OnePeer()), codec=Int8())),
    Method(
        name="D-SGD, Nesterov, int8", topology="one peer",
        sync=_gossip(lambda n: Gossip(topology=OnePeer()), Nesterov(lr=0.7, momentum=0.5), Int8()),
    ),
    Method(name="D-SGD, int4", topology="one peer", sync=_gossip(lambda n: Gossip(topology=OnePeer()), codec=Int4())),
    Method(
        name="decentralised AdamW", topology="one peer",
        sync=_gossip(lambda n: Gossip(topology=OnePeer(), rule=Overlapped())),
    ),
    Method(name="D-SGD", topology="random pairs", sync=_gossip(lambda n: Gossip(topology=RandomPairs()))),
    Method(
        name="NoLoCo", topology="random pairs",
        sync=_gossip(lambda n: Gossip(topology=RandomPairs(), rule=NoLoCo())),
    ),
    Method(
        name="GASLoC", topology="random pairs",
        sync=_gossip(lambda n: Gossip(topology=RandomPairs(), rule=GASLoC())),
    ),
    Method(name="D-SGD", topology="ring", sync=_gossip(lambda n: Gossip(topology=Ring()))),
    Method(name="D-SGD, 4 steps", topology="ring", sync=_gossip(lambda n: Gossip(topology=Ring(), steps=4))),
    Method(name="D-SGD", topology="torus", sync=_gossip(lambda n: Gossip(topology=Torus()))),
    Method(name="D-SGD", topology="exponential", sync=_gossip(lambda n: Gossip(topology=Exponential()))),
    Method(name="D-SGD", topology="random regular, 3", sync=_gossip(lambda n: Gossip(topology=RandomRegular()))),
    Method(name="D-SGD", topology="scale-free", sync=_gossip(lambda n: Gossip(topology=BarabasiAlbert()))),
    Method(name="D-SGD", topology="complete", sync=_gossip(lambda n: Gossip(topology=Complete()))),
    Method(
        name="variance-corrected", topology="one peer",
        sync=_gossip(lambda n: Gossip(topology=OnePeer(), rule=VarianceCorrected())),
    ),
    Method(
        name="multigraph", topology="ring",
        sync=_gossip(lambda n: Gossip(topology=Multigraph(overlay=Ring(), delay_s=_slow(n)))),
    ),
    Method(
        name="late gossip, one merge", topology="one peer",
        sync=lambda n: SyncConfig(
            every=EVERY, outer=SGD(lr=1.0), schedule=LateMerge(steps=STEPS, merges=10),
            exchange=Gossip(topology=OnePeer()),
        ),
    ),
    Method(
        name="cooperation", topology="complete",
        sync=_gossip(lambda n: Gossip(topology=Complete(), rule=Cooperation())),
    ),
    Method(name="MoDeST", topology="samples of a half", sync=_gossip(lambda n: Modest(sample=n // 2))),
    Method(
        name="MoDeST, 80 % dead", topology="samples of 4", only=16,
        sync=_gossip(lambda n: Modest(sample=4, churn=_dead(n))),
    ),
    Method(
        name="D-SGD, 80 % dead", topology="one peer", only=16,
        sync=_gossip(lambda n: Gossip(topology=OnePeer(), churn=_dead(n))),
    ),
    Method(
        name="D-SGD, hubs lost", topology="scale-free", only=16,
        sync=_gossip(lambda n: Gossip(topology=BarabasiAlbert(), churn=_hubs(n))),
    ),
    Method(
        name="D-SGD, hubs lost, memory", topology="scale-free", only=16,
        sync=_gossip(lambda n: Gossip(topology=BarabasiAlbert(), churn=_hubs(n), memory=0.9)),
    ),
    Method(
        name="DFedSAM", topology="ring",
        sync=lambda n: SyncConfig(
            every=EVERY, outer=SGD(lr=1.0), exchange=Gossip(topology=Ring()), objective=SharpnessAware()
        ),
    ),
)  # fmt: skip
