"""Rules that weigh islands by their losses: formulas, reductions, what they remember, what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

from lowcomm.aggregate import AFL, QFFL, Aggregator, FedFB, Mean
from lowcomm.aggregate.loss_weighted import LossWeighted, Said
from lowcomm.config import RunConfig, SyncConfig
from lowcomm.config_check import check
from lowcomm.exchange.gossip import Gossip
from lowcomm.hooks.loss_weights import LossWeights
from lowcomm.outer import SGD
from lowcomm.privacy import ClientGaussian
from lowcomm.schedule import EveryStep, Streaming
from lowcomm.secure import SecureSum
from lowcomm.state.checkpoint import global_part, island_part, load_global, load_island
from lowcomm.state.report import SyncReport
from lowcomm.state.spec import SyncSpec
from lowcomm.sync import LocalSGD
from lowcomm.sync.compatibility import check_islands
from lowcomm.transport import Simulated
from lowcomm.types import ConfigError, SyncError
from tests.support import toy

OFF = (QFFL(power=0.0), AFL(lr=0.0), FedFB(rate=0.0), FedFB(rate=0.0, groups=(0, 1, 0)))
ON = (QFFL(power=2.0), AFL(lr=5.0), FedFB(), FedFB(groups=(0, 1, 0)))


def islands_of(rule: Aggregator, count: int = 3) -> LocalSGD:
    models = [toy.Net() for _ in range(count)]
    inners = [toy.adamw(m) for m in models]
    return LocalSGD(models, inners, every=toy.EVERY, outer=SGD(lr=1.0), aggregator=rule, transport=Simulated(count))


def hook_of(sync: LocalSGD) -> LossWeights:
    return next(h for h in sync.state.hooks if isinstance(h, LossWeights))


@pytest.mark.parametrize("rule", OFF, ids=repr)
def test_switched_off_it_is_the_mean_by_tokens_bit_for_bit(rule: Aggregator) -> None:
    def weights(one: Aggregator) -> list[str]:
        return [line for line in toy.trajectory(islands_of(one)) if not line.startswith("bytes")]

    assert weights(rule) == weights(Mean())


def test_weights_are_tokens_times_a_power_of_the_loss() -> None:
    sync = islands_of(QFFL(power=2.0))
    reports: list[SyncReport] = []
    sync.listeners.append(reports.append)
    losses: list[list[float]] = [[] for _ in range(3)]
    for step in range(toy.EVERY):
        for k, loss in enumerate(toy.train_step(sync, step)):
            losses[k].append(loss)
    raw = [(4 + k) * toy.EVERY * (sum(own) / len(own)) ** 2 for k, own in enumerate(losses)]
    assert reports[0].weights == pytest.approx([r / sum(raw) for r in raw], rel=1e-9)
    assert any("QFFL: weights" in note and "loss" in note for note in reports[0].notes)


def test_an_island_weighs_more_while_its_loss_is_above_the_others() -> None:
    rule, learnt = AFL(lr=0.5, most=3.0), {}
    for _ in range(4):
        learnt = rule.learn({0: Said(loss=3.0, tokens=1), 1: Said(loss=1.0, tokens=1)}, learnt, 3)
    assert [rule.factor(k, 1.0, learnt) for k in range(3)] == pytest.approx([3.0, 1 / 3, 1.0])
    once = rule.learn({0: Said(loss=3.0, tokens=1), 1: Said(loss=1.0, tokens=1)}, {}, 3)
    assert rule.factor(0, 1.0, once) == pytest.approx(math.exp(0.5))


def test_groups_move_by_a_share_of_the_rate_each_round() -> None:
    rule = FedFB(rate=0.3, groups=(0, 0, 1))
    said = {0: Said(loss=2.0, tokens=100), 1: Said(loss=2.0, tokens=100), 2: Said(loss=1.0, tokens=200)}
    learnt = rule.learn(said, {}, 3)
    assert learnt["shares"] == [0.5, 0.5] and learnt["lambdas"] == pytest.approx([0.8, 0.2])
    assert [rule.factor(k, 1.0, learnt) for k in range(3)] == pytest.approx([1.6, 1.6, 0.4])
    again = rule.learn(said, learnt, 3)
    assert again["lambdas"] == pytest.approx([0.95, 0.05])
    for _ in range(20):
        again = rule.learn(said, again, 3)
    assert rule.factor(2, 1.0, again) > 0


@pytest.mark.parametrize("rule", ON, ids=repr)
def test_what_it_remembers_is_in_the_checkpoint(rule: LossWeighted) -> None:
    whole, saved, fresh = (islands_of(rule) for _ in range(3))
    for step in range(toy.STEPS):
        toy.train_step(whole, step)
    for step in range(2 * toy.EVERY + 2):
        toy.train_step(saved, step)
    load_global(fresh.state, global_part(saved.state))
    for i in range(3):
        load_island(fresh.state, i, island_part(saved.state, i))
    assert hook_of(fresh).learnt == hook_of(saved).learnt
    for step in range(2 * toy.EVERY + 2, toy.STEPS):
        toy.train_step(fresh, step)
    assert all(torch.equal(w, fresh.weights()[n]) for n, w in whole.weights().items())


def test_a_loss_that_nobody_said_is_asked_for() -> None:
    sync = islands_of(QFFL())
    with pytest.raises(SyncError, match=r"island 0 has said none. Fix: call count_loss"):
        for step in range(toy.EVERY):
            for replica, k in zip(sync.replicas, range(3), strict=True):
                x, y = toy.batch(k, step)
                (replica.model(x) - y).square().mean().backward()
                sync.count_tokens(len(x), k)
                replica.inner.step()


def test_a_loss_that_is_no_number_leaves_the_island_out() -> None:
    sync = islands_of(QFFL())
    reports: list[SyncReport] = []
    sync.listeners.append(reports.append)
    for step in range(toy.EVERY):
        if step == toy.EVERY - 1:
            sync.replicas[1].losses = (-50.0, 4)
        toy.train_step(sync, step)
    assert "it says a loss of" in reports[0].dropped[1]
    with pytest.raises(ConfigError, match="loss = nan"):
        sync.count_loss(math.nan)


REFUSED: list[tuple[SyncConfig, str]] = [
    (SyncConfig(aggregator=QFFL(power=-1.0)), r"sync\.aggregator\.power = -1\.0"),
    (SyncConfig(aggregator=QFFL(power=11.0)), r"sync\.aggregator\.power = 11\.0"),
    (SyncConfig(aggregator=AFL(lr=math.inf)), r"sync\.aggregator\.lr = inf"),
    (SyncConfig(aggregator=AFL(most=1.0)), r"sync\.aggregator\.most = 1\.0"),
    (SyncConfig(aggregator=FedFB(rate=1.5)), r"sync\.aggregator\.rate = 1\.5"),
    (SyncConfig(aggregator=FedFB(groups=(0, 2, 0))), r"sync\.aggregator\.groups = \(0, 2, 0\)"),
    (SyncConfig(aggregator=FedFB(groups=(0, 1))), r"one number for each of 3 islands"),
    (SyncConfig(aggregator=QFFL(), schedule=EveryStep()), r"sync\.schedule = EveryStep"),
    (SyncConfig(aggregator=QFFL(), schedule=Streaming(fragments=2)), r"sync\.schedule = Streaming"),
    (SyncConfig(aggregator=QFFL(), exchange=Gossip()), r"sync\.aggregator = QFFL"),
    (SyncConfig(aggregator=QFFL(), secure=SecureSum()), r"says its loss in the open"),
    (SyncConfig(aggregator=QFFL(), privacy=ClientGaussian()), r"Fix: "),
]


def test_islands_of_several_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"island\.size = 2 .* sync\.aggregator = QFFL"):
        check_islands(SyncSpec(every=4, aggregator=QFFL()), 2, 2, ())


@pytest.mark.parametrize(("sync", "message"), REFUSED, ids=[m[:40] for _, m in REFUSED])
def test_settings_that_do_not_fit_are_refused(sync: SyncConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check(RunConfig(sync=sync), 3)
    assert "\n" not in str(caught.value) and "Fix: " in str(caught.value)
