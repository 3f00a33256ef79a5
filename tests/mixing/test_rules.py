"""Rules of mixing: their equations by hand, and what each reduces to."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from lowcomm.aggregate import Mean
from lowcomm.codec import Int4
from lowcomm.exchange.gossip import Gossip
from lowcomm.mixing import (
    Cooperation,
    Game,
    GASLoC,
    Heard,
    NetworkLasso,
    NoLoCo,
    Overlapped,
    Place,
    PlainMixing,
    Rule,
    VarianceCorrected,
)
from lowcomm.outer import SGD, HeavyBall, Nesterov, Outer
from lowcomm.schedule import EveryStep, LateMerge
from lowcomm.state.outgoing import Outgoing, Pending
from lowcomm.state.spec import SyncSpec
from lowcomm.sync import LocalSGD
from lowcomm.sync.compatibility import check_islands, check_spec
from lowcomm.topology import Churn, Complete, Loss, Multigraph, OnePeer, RandomPairs, Ring, Torus, mixing
from lowcomm.types import ConfigError
from tests.methods import RULES, name
from tests.support import gossiping, toy


def own(sync: LocalSGD) -> Tensor:
    """Anchors, [islands, numel]."""
    numel = sync.state.fragments[0].numel
    return torch.stack([sync.state.anchor_of(0, i).weights[:numel] for i in range(len(sync.replicas))])


def fedavg(islands: int, outer: Outer) -> LocalSGD:
    models = [toy.Net() for _ in range(islands)]
    mean = Mean(by="uniform")
    return LocalSGD(models, [toy.adamw(m) for m in models], every=toy.EVERY, outer=outer, aggregator=mean)


@pytest.mark.parametrize(
    ("rule", "outer", "same"),
    [
        (NoLoCo(lr=0.7, momentum=0.5, pull=1.0), SGD(lr=1.0), HeavyBall(lr=0.7, momentum=0.5)),
        (GASLoC(lr=0.7, momentum=0.0), SGD(lr=1.0), SGD(lr=0.7)),
        (Cooperation(scale=1e9), SGD(lr=1.0), SGD(lr=1.0)),
        (PlainMixing(), SGD(lr=1.0), SGD(lr=1.0)),
    ],
    ids=name,
)
def test_all_with_all_is_fedavg(rule: Rule, outer: Outer, same: Outer) -> None:
    choice = Gossip(topology=Complete(), rule=rule)
    sync, shared = gossiping.build(4, choice=choice, outer=outer), fedavg(4, same)
    for step in range(3 * toy.EVERY):
        toy.train_step(sync, step)
        toy.train_step(shared, step)
    mean = shared.state.anchors[0][0].weights[: own(sync).shape[1]]
    for row in own(sync):
        torch.testing.assert_close(row, mean, rtol=1e-4, atol=1e-5)  # sums in another order


def trajectory(choice: Gossip, rounds: int = 4, outer: Outer | None = None) -> list[dict[int, str]]:
    sync, seen = gossiping.build(4, choice=choice, outer=outer), list[dict[int, str]]()
    for step in range(rounds * toy.EVERY):
        gossiping.train_step(sync, step)
        if (step + 1) % toy.EVERY == 0:
            seen.append(gossiping.anchors(sync))
    return seen


@pytest.mark.parametrize(
    "choice",
    [
        Gossip(rule=GASLoC(momentum=0.0)),
        Gossip(rule=VarianceCorrected(most=1.0)),
        Gossip(topology=Multigraph(delay_s=(1.0, 2.0, 3.0, 4.0), longest=1)),
        Gossip(topology=Multigraph()),
        Gossip(churn=Churn()),
        Gossip(memory=0.9),
    ],
    ids=name,
)
def test_switched_off_it_is_plain_mixing_bit_for_bit(choice: Gossip) -> None:
    assert trajectory(choice) == trajectory(Gossip())


def test_alone_with_its_like_cooperation_is_local_training() -> None:
    """A scale near 0 leaves weight to oneself only: each anchor is what its island trained."""
    sync = gossiping.build(3, choice=Gossip(topology=Complete(), rule=Cooperation(scale=1e-6)))
    models = [toy.Net() for _ in range(3)]
    inners = [toy.adamw(m) for m in models]
    for step in range(2 * toy.EVERY):
        toy.train_step(sync, step)
        for k, (model, inner) in enumerate(zip(models, inners, strict=True)):
            x, y = toy.batch(k, step)
            (model(x) - y).square().mean().backward()
            inner.step()
            inner.zero_grad()
    for row, model in zip(own(sync), models, strict=True):
        torch.testing.assert_close(row, toy.flat(list(model.parameters())), rtol=1e-5, atol=1e-6)


def test_without_a_price_on_edges_the_lasso_is_fedprox_alone() -> None:
    """lam = 0: each island trains for itself, pulled by its two edges to where its round began; none in the first."""
    sync = gossiping.build(3, choice=Gossip(rule=NetworkLasso(lam=0.0, rho=0.5)))
    models = [toy.Net() for _ in range(3)]
    inners = [toy.adamw(m) for m in models]
    starts: list[dict[str, Tensor]] = [{} for _ in range(3)]
    for step in range(3 * toy.EVERY):
        toy.train_step(sync, step)
        for k, (model, inner) in enumerate(zip(models, inners, strict=True)):
            if step and step % toy.EVERY == 0:
                starts[k] = {n: p.detach().clone() for n, p in model.named_parameters()}
            x, y = toy.batch(k, step)
            (model(x) - y).square().mean().backward()
            for n, p in model.named_parameters():
                if starts[k] and p.grad is not None:
                    p.grad.add_(p.detach() - starts[k][n], alpha=0.5 * 2)
            inner.step()
            inner.zero_grad()
    for row, model in zip(own(sync), models, strict=True):
        torch.testing.assert_close(row, toy.flat(list(model.parameters())), rtol=1e-3, atol=1e-4)


def test_a_price_on_edges_brings_islands_together() -> None:
    def distance(lam: float) -> float:
        models = [toy.Net() for _ in range(3)]
        choice = Gossip(rule=NetworkLasso(lam=lam, rho=0.5))
        sync = LocalSGD(models, [toy.sgd(m) for m in models], every=toy.EVERY, outer=SGD(lr=1.0), exchange=choice)
        for step in range(12 * toy.EVERY):
            toy.train_step(sync, step)
        return float(own(sync).var(dim=0).sum())

    none, low, middle = distance(0.0), distance(0.01), distance(0.05)
    assert middle < 0.4 * none
    assert middle < low < none
    assert distance(1e9) < 0.5 * none  # consensus ADMM, whose duals swing before they rest


def apart(sync: LocalSGD) -> Tensor:
    """Move islands apart, without training; where they are, [islands, numel]."""
    for i, replica in enumerate(sync.replicas):
        for p in replica.held.values():
            p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    numel = sync.state.fragments[0].numel
    return torch.stack([toy.flat(r.tensors(sync.state.fragments[0]))[:numel] for r in sync.replicas])


def test_several_steps_go_on_to_the_next_graphs() -> None:
    """Q = 3 of the one-peer graph of 8 is the exact mean in one round."""
    sync = gossiping.build(8, choice=Gossip(topology=OnePeer(), steps=3))
    mean = apart(sync).mean(dim=0)
    sync.sync((0,))
    for row in own(sync):
        torch.testing.assert_close(row, mean, rtol=1e-5, atol=1e-6)
    twice = gossiping.build(4, choice=Gossip(topology=Ring(), steps=2))
    start = apart(twice)
    twice.sync((0,))
    w = torch.tensor(mixing(Ring(), 0, 4, 5))
    torch.testing.assert_close(own(twice), w @ w @ start, rtol=1e-5, atol=1e-6)


def test_overlapped_mixes_where_the_round_began(monkeypatch: pytest.MonkeyPatch) -> None:
    sync = gossiping.build(4, choice=Gossip(rule=Overlapped()))
    w = torch.tensor(mixing(Ring(), 0, 4, 5))
    before, numel = own(sync), sync.state.fragments[0].numel
    moved: list[Tensor] = []
    start = sync.state.exchange.start

    def watched(out: Outgoing) -> Pending:
        moved.append(torch.stack([d[:numel].clone() for d in out.deltas]))
        return start(out)

    monkeypatch.setattr(sync.state.exchange, "start", watched)
    for step in range(3 * toy.EVERY):
        toy.train_step(sync, step)
        if (step + 1) % toy.EVERY == 0:
            torch.testing.assert_close(own(sync), w @ before - moved[-1], rtol=1e-5, atol=1e-6)
            before = own(sync)


def place(anchor: Tensor, delta: Tensor, gamma: float = 1.0) -> Place:
    shapes = {"matrix": (8, 16), "norm": (16,)}

    def views(flat: Tensor) -> dict[str, Tensor]:
        return {"matrix": flat[:128].view(shapes["matrix"]), "norm": flat[128:144]}

    return Place(island=0, islands=3, anchor=anchor, delta=delta, gamma=gamma, views=views)


def test_averaging_independent_weights_keeps_their_spread() -> None:
    draws = torch.Generator().manual_seed(0)
    models = torch.randn(4, 144, generator=draws)
    plain, corrected = (place(models[0].clone(), torch.zeros(144)) for _ in range(2))
    for rule, one in ((PlainMixing(), plain), (VarianceCorrected(most=3.0), corrected)):
        heard = [Heard(island=j, weight=0.25, differences=(models[j] - models[0],)) for j in (1, 2, 3)]
        rule.mix(one, heard)
    mean, wide = plain.anchor - plain.delta, corrected.anchor - corrected.delta
    torch.testing.assert_close(mean, models.mean(dim=0), rtol=1e-5, atol=1e-6)
    assert mean[:128].var() < 0.4
    torch.testing.assert_close(wide[:128].var(correction=0), models[:, :128].var(dim=1, correction=0).mean())
    assert torch.equal(mean[128:], wide[128:])  # a vector is left alone


def test_gasloc_adds_a_share_of_the_last_move() -> None:
    rule, state = GASLoC(lr=0.5, momentum=0.4), dict[str, Tensor]()
    a, y_before = torch.zeros(144), None
    for index in range(3):
        delta = torch.full((144,), -1.0 - index)
        one = dataclasses.replace(place(a, delta.clone()), state=state)
        (y,) = rule.say(one)
        torch.testing.assert_close(y, a - 0.5 * delta)
        theirs = y + 2.0
        rule.mix(one, [Heard(island=1, weight=0.5, differences=(theirs - y,))])
        expected = y + 0.5 * 2.0 + (0 if y_before is None else 0.4 * (y - y_before))
        torch.testing.assert_close(a - one.delta, expected)
        y_before, a = y, a - one.delta


def test_noloco_follows_its_equation() -> None:
    rule, state = NoLoCo(lr=0.7, momentum=0.5, pull=0.6), dict[str, Tensor]()
    draws = torch.Generator().manual_seed(1)
    a, d = torch.randn(144, generator=draws), torch.zeros(144)
    for _ in range(3):
        delta, a_j, d_j = (torch.randn(144, generator=draws) for _ in range(3))
        one = dataclasses.replace(place(a, delta.clone()), state=state)
        rule.mix(one, [Heard(island=1, weight=0.5, differences=(a_j - a, d_j - delta))])
        d = 0.5 * d - 0.7 * (delta + d_j) / 2 - 0.6 * (a - (a + a_j) / 2)
        torch.testing.assert_close(a - one.delta, a + d, rtol=1e-5, atol=1e-5)
        a = a + d


def test_the_pull_holds_pairs_together_and_without_it_they_part() -> None:
    """The bound on `pull`, where momentum alone lets islands drift: no training, 64 islands apart at the beginning."""

    def spread(pull: float) -> float:
        rule, islands = NoLoCo(lr=0.7, momentum=0.5, pull=pull), 64
        draws = torch.Generator().manual_seed(2)
        anchors = [torch.randn(144, generator=draws) for _ in range(islands)]
        states: list[dict[str, Tensor]] = [{} for _ in range(islands)]
        first = float(torch.stack(anchors).var(dim=0).sum())
        for index in range(40):
            after: list[Tensor] = []
            for k in range(islands):
                (j,) = RandomPairs().neighbours(index, k, islands, 0)
                one = dataclasses.replace(place(anchors[k], torch.zeros(144)), state=states[k])
                rule.mix(one, [Heard(island=j, weight=0.5, differences=(anchors[j] - anchors[k], torch.zeros(144)))])
                after.append(anchors[k] - one.delta)
            anchors = after
        return float(torch.stack(anchors).var(dim=0).sum()) / first

    assert spread(0.5) < 1e-3
    assert spread(1.6) > 1.0  # beyond 2 (1 - 0.25)
    NoLoCo(momentum=0.5, pull=1.49).check()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exchange": Gossip(rule=NoLoCo()), "outer": Nesterov()}, r"sync\.outer = .* use SGD\(lr=1\.0\)"),
        ({"exchange": Gossip(rule=NoLoCo()), "codec": Int4()}, r"sync\.codec = Int4 .*NoLoCo.* use Fp32"),
        ({"exchange": Gossip(rule=VarianceCorrected()), "codec": Int4()}, r"sync\.codec = Int4 .*VarianceCorrected"),
        ({"exchange": Gossip(rule=GASLoC(), steps=2)}, r"sync\.exchange\.steps = 2 .*one step per round"),
        ({"exchange": Gossip(rule=Cooperation(), memory=0.9)}, r"sync\.exchange\.memory = 0\.9"),
        ({"exchange": Gossip(rule=NoLoCo(), topology=Multigraph())}, r"sync\.exchange\.topology = Multigraph"),
        ({"exchange": Gossip(topology=Multigraph(), steps=2)}, "an edge rests for whole rounds"),
        (
            {"exchange": Gossip(churn=Churn(losses=(Loss(round=1),))), "schedule": LateMerge(steps=64)},
            "rest for rounds of one length",
        ),
        ({"exchange": Gossip(), "schedule": EveryStep()}, "whole rounds"),
        ({"exchange": Gossip(steps=0)}, r"sync\.exchange\.steps = 0"),
        ({"exchange": Gossip(memory=0.0)}, r"sync\.exchange\.memory = 0\.0"),
        ({"exchange": Gossip(memory=math.nan)}, r"sync\.exchange\.memory = nan"),
        ({"exchange": Gossip(rule=NoLoCo(lr=0.0))}, r"rule\.lr = 0\.0"),
        ({"exchange": Gossip(rule=NoLoCo(momentum=1.0))}, r"rule\.momentum = 1\.0"),
        ({"exchange": Gossip(rule=NoLoCo(momentum=0.9, pull=0.5))}, r"rule\.pull = 0\.5 .*0\.38"),
        ({"exchange": Gossip(rule=GASLoC(lr=math.inf))}, r"rule\.lr = inf"),
        ({"exchange": Gossip(rule=GASLoC(momentum=-0.1))}, r"rule\.momentum = -0\.1"),
        ({"exchange": Gossip(rule=VarianceCorrected(most=0.5))}, r"rule\.most = 0\.5"),
        ({"exchange": Gossip(rule=Game(best=0))}, r"rule\.best = 0"),
        ({"exchange": Gossip(rule=NetworkLasso(lam=-1.0))}, r"rule\.lam = -1\.0"),
        ({"exchange": Gossip(rule=NetworkLasso(rho=0.0))}, r"rule\.rho = 0\.0"),
        ({"exchange": Gossip(rule=Cooperation(scale=0.0))}, r"rule\.scale = 0\.0"),
        ({"exchange": Gossip(rule=Cooperation(memory=1.0))}, r"rule\.memory = 1\.0"),
        ({"exchange": Gossip(rule=Cooperation(least=2.0))}, r"rule\.least = 2\.0"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, object], words: str) -> None:
    spec = dataclasses.replace(SyncSpec(every=4, exchange=Gossip(), outer=SGD(lr=1.0)), **changes)
    with pytest.raises(ConfigError, match=words):
        check_spec(spec, 64)
        check_islands(spec, 4, 1, ())


def test_a_game_mixes_those_who_help_by_their_shares() -> None:
    """One weight counts, and the loss is its squared distance from 1."""

    def loss(flat: Tensor) -> float:
        return float((flat[0] - 1).square())

    def mixed(own: float, others: list[float], best: int = 3) -> float:
        anchor = torch.zeros(144)
        delta = anchor.clone()
        delta[0] = -own
        one = dataclasses.replace(place(anchor, delta), loss=loss)
        heard = []
        for j, value in enumerate(others):
            difference = torch.zeros(144)
            difference[0] = value - own
            heard.append(Heard(island=j, weight=0.1, differences=(difference,)))
        Game(best=best).mix(one, heard)
        return float((one.anchor - one.delta)[0])

    assert mixed(0.5, []) == 0.5
    assert mixed(0.5, [-3.0, 0.4]) == 0.5  # who does not help is not heard
    # c = 0.8; payoffs 1 - 0.25, 1 - 0.04, 1 - 0.1225: shares (0.75 + 0.8775 - 0.96) / 2 and (0.96 + 0.8775 - 0.75) / 2
    assert math.isclose(mixed(0.5, [0.8, -3.0]), 0.5 + 0.3 * 0.54375 / 0.8775, rel_tol=1e-5)
    assert mixed(0.5, [0.8, 0.6, 0.7], best=1) == pytest.approx(mixed(0.5, [0.8]))


@pytest.mark.parametrize("rule", [r for r in RULES if not r.judges], ids=name)
def test_every_rule_trains_and_keeps_its_state(rule: Rule) -> None:
    """Islands train, weights stay finite, and the rule's tensors are what a checkpoint of the island has."""
    sync = gossiping.build(4, choice=Gossip(topology=Torus(rows=2), rule=rule))
    losses = [sum(toy.train_step(sync, step)) for step in range(8 * toy.EVERY)]
    assert sum(losses[-4:]) < sum(losses[:4])
    tensors, _ = sync.state.exchange.island_part(1)
    kept = {key: t for key, t in tensors.items() if key.startswith("mixing.0.")}
    other = gossiping.build(4, choice=Gossip(topology=Torus(rows=2), rule=rule))
    other.state.exchange.load_island(1, tensors, {})
    again, _ = other.state.exchange.island_part(1)
    torch.testing.assert_close(again, kept, rtol=0, atol=0, equal_nan=True)
