"""Outer optimizers, schedules and aggregators: formulas, limits, and the reductions that their docstrings claim."""

from __future__ import annotations

import inspect
import math
from types import ModuleType

import pytest
import torch

import lowcomm.aggregate
import lowcomm.arrival
import lowcomm.codec
import lowcomm.mixing
import lowcomm.outer
import lowcomm.privacy
import lowcomm.schedule
import lowcomm.topology
from lowcomm.aggregate.loss_weighted import LossWeighted
from lowcomm.outer import (
    SGD,
    DelayedNesterov,
    FedAdagrad,
    FedAdam,
    FedYogi,
    HeavyBall,
    HeLoCo,
    Lion,
    Nesterov,
    Outer,
    Pier,
    ScheduleFree,
)
from lowcomm.schedule import EveryH, EveryStep, PostLocal
from lowcomm.transport import Simulated
from lowcomm.types import ConfigError, Contribution
from tests.methods import AGGREGATORS, ARRIVALS, CODECS, MECHANISMS, OUTERS, RULES, SCHEDULES, TOPOLOGIES, name
from tests.support import toy


@pytest.mark.parametrize(
    ("package", "base", "listed"),
    [
        (lowcomm.outer, lowcomm.outer.Outer, OUTERS),
        (lowcomm.arrival, lowcomm.arrival.ArrivalRule, ARRIVALS),
        (lowcomm.schedule, lowcomm.schedule.Schedule, SCHEDULES),
        (lowcomm.aggregate, lowcomm.aggregate.Aggregator, AGGREGATORS),
        (lowcomm.codec, lowcomm.codec.Codec, CODECS),
        (lowcomm.privacy, lowcomm.privacy.Mechanism, MECHANISMS),
        (lowcomm.topology, lowcomm.topology.Topology, TOPOLOGIES),
        (lowcomm.mixing, lowcomm.mixing.Rule, RULES),
    ],
)
def test_no_method_is_forgotten(package: ModuleType, base: type, listed: tuple[object, ...]) -> None:
    exported = [getattr(package, n) for n in package.__all__]
    concrete = {c for c in exported if inspect.isclass(c) and issubclass(c, base) and not inspect.isabstract(c)}
    missing = {c.__name__ for c in concrete} - {type(m).__name__ for m in listed}
    assert not missing, f"add {missing} to tests/methods.py"


def apply(outer: Outer, deltas: list[torch.Tensor], start: torch.Tensor) -> torch.Tensor:
    p = start.clone().requires_grad_()
    optimizer = outer.build([p])
    for delta in deltas:
        p.grad = delta.clone()
        optimizer.step()
    return p.detach()


def reference(outer: Outer, deltas: list[torch.Tensor], start: torch.Tensor) -> torch.Tensor:
    """The papers' equations, written out in float64."""
    x, m, u = start.double(), torch.zeros(len(start)).double(), torch.zeros(len(start)).double()
    v = torch.full((len(start),), getattr(outer, "tau", 0.0) ** 2).double()
    z = average = x
    for t, delta in enumerate(d.double() for d in deltas):
        if isinstance(outer, DelayedNesterov):
            x = x - delayed_nesterov(outer, [d.double() for d in deltas[: t + 1]])
        elif isinstance(outer, HeLoCo):
            m = outer.momentum * m + (1 - outer.momentum) * delta
            x = x - outer.lr * (delta + outer.momentum * m)
        elif isinstance(outer, ScheduleFree):
            z = z - outer.lr * delta
            average = average + (z - average) / (t + 2)
            x = (1 - outer.beta) * z + outer.beta * average
        elif isinstance(outer, Lion):
            x = x - outer.lr * torch.sign(outer.beta1 * m + (1 - outer.beta1) * delta)
            m = outer.beta2 * m + (1 - outer.beta2) * delta
        elif isinstance(outer, Pier):
            lr, momentum = outer.at(t)
            u = momentum * u + delta
            x = x - lr * (delta + momentum * u)
        elif isinstance(outer, SGD):
            x = x - outer.lr * delta
        elif isinstance(outer, HeavyBall):
            u = outer.momentum * u + delta
            x = x - outer.lr * u
        elif isinstance(outer, Nesterov):
            u = outer.momentum * u + delta
            x = x - outer.lr * (delta + outer.momentum * u)
        else:
            assert isinstance(outer, (FedAdagrad, FedAdam, FedYogi))
            m = outer.beta1 * m + (1 - outer.beta1) * delta
            if isinstance(outer, FedAdagrad):
                v = v + delta**2
            elif isinstance(outer, FedAdam):
                v = outer.beta2 * v + (1 - outer.beta2) * delta**2
            else:
                v = v - (1 - outer.beta2) * delta**2 * torch.sign(v - delta**2)
            x = x - outer.lr * m / (v.sqrt() + outer.tau)
    return x


def delayed_nesterov(outer: DelayedNesterov, deltas: list[torch.Tensor]) -> torch.Tensor:
    """The step after these Deltas, its momentum from the whole history."""
    n, c, beta = outer.every, outer.spread, outer.momentum
    means = [sum(deltas[k : k + n], torch.zeros(1)) / n for k in range(0, len(deltas) - n + 1, n)]
    m = sum((beta ** (len(means) - 1 - k) * mean for k, mean in enumerate(means)), torch.zeros(1).double())
    share = 1 - c * n + c if len(deltas) % n == 0 else c
    return outer.lr * (share * beta * m + deltas[-1] / n)


@pytest.mark.parametrize("outer", OUTERS, ids=name)
def test_outer_follows_its_equation(outer: Outer) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(50, generator=generator)
    deltas = [torch.randn(50, generator=generator) * 0.01 for _ in range(7)]
    torch.testing.assert_close(
        apply(outer, deltas, start).double(), reference(outer, deltas, start), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "outer",
    [HeavyBall(lr=0.5, momentum=0.0), Nesterov(lr=0.5, momentum=0.0), HeLoCo(lr=0.5, momentum=0.0)],
    ids=name,
)
def test_no_momentum_is_sgd(outer: Outer) -> None:
    deltas = [torch.randn(9) for _ in range(3)]
    assert torch.equal(apply(outer, deltas, torch.ones(9)), apply(SGD(lr=0.5), deltas, torch.ones(9)))


def test_delayed_nesterov_without_delay_is_nesterov() -> None:
    deltas = [torch.randn(9) for _ in range(4)]
    a = apply(DelayedNesterov(lr=0.5, momentum=0.7, every=1), deltas, torch.ones(9))
    torch.testing.assert_close(a, apply(Nesterov(lr=0.5, momentum=0.7), deltas, torch.ones(9)))
    a = apply(DelayedNesterov(lr=0.6, momentum=0.0, every=3), deltas, torch.ones(9))
    torch.testing.assert_close(a, apply(SGD(lr=0.2), deltas, torch.ones(9)))


def test_delayed_nesterov_moves_as_far_as_nesterov_along_the_mean() -> None:
    deltas = [torch.randn(9) for _ in range(8)]
    means = [torch.stack(deltas[k : k + 4]).mean(dim=0) for k in (0, 4)]
    a = apply(DelayedNesterov(lr=0.5, momentum=0.7, every=4), deltas, torch.zeros(9))
    torch.testing.assert_close(a, apply(Nesterov(lr=0.5, momentum=0.7), means, torch.zeros(9)), rtol=1e-4, atol=1e-5)


def test_pier_without_warm_up_and_decay_is_nesterov_and_its_first_step_is_averaging() -> None:
    deltas = [torch.randn(9) for _ in range(4)]
    steady = Pier(lr=0.7, momentum=0.8, warmup_rounds=0)
    wanted = apply(Nesterov(lr=0.7, momentum=0.8), deltas, torch.ones(9))
    torch.testing.assert_close(apply(steady, deltas, torch.ones(9)), wanted, rtol=1e-6, atol=1e-6)
    first = apply(Pier(warmup_rounds=5), deltas[:1], torch.ones(9))
    assert torch.equal(first, apply(SGD(lr=1.0), deltas[:1], torch.ones(9)))


def test_pier_goes_from_its_first_to_its_last_values() -> None:
    pier = Pier(lr=0.7, momentum=0.9, warmup_rounds=10, decay_from=20, decay_rounds=4, last_lr=0.9, last_momentum=0.5)
    at = [pier.at(done) for done in (0, 5, 10, 20, 22, 24, 99)]
    wanted = [(1.0, 0.0), (0.85, 0.45), (0.7, 0.9), (0.7, 0.9), (0.8, 0.7), (0.9, 0.5), (0.9, 0.5)]
    assert at == [pytest.approx(pair) for pair in wanted]


def test_schedule_free_without_averaging_is_sgd() -> None:
    deltas = [torch.randn(9) for _ in range(3)]
    assert torch.equal(
        apply(ScheduleFree(lr=0.5, beta=0.0), deltas, torch.ones(9)), apply(SGD(lr=0.5), deltas, torch.ones(9))
    )


def test_lion_without_moments_is_sign_descent() -> None:
    delta = torch.randn(9)
    assert torch.equal(apply(Lion(lr=0.5, beta1=0.0, beta2=0.0), [delta], torch.ones(9)), 1 - 0.5 * delta.sign())


@pytest.mark.parametrize(
    ("outer", "field"),
    [
        (Pier(first_lr=0.0), "first_lr"),
        (Pier(last_lr=math.inf), "last_lr"),
        (Pier(momentum=1.0), "momentum"),
        (Pier(first_momentum=-0.1), "first_momentum"),
        (Pier(last_momentum=1.5), "last_momentum"),
        (Pier(warmup_rounds=-1), "warmup_rounds"),
        (Pier(decay_from=3), "decay_from"),
        (Pier(decay_rounds=0), "decay_rounds"),
        (ScheduleFree(beta=1.0), "beta"),
        (Lion(beta1=1.0), "beta1"),
        (Lion(beta2=-1.0), "beta2"),
    ],
)
def test_outer_settings_out_of_range_are_refused(outer: Outer, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"sync\.outer\.{field} = .* Fix: "):
        outer.check()


@pytest.mark.parametrize("kind", [FedAdagrad, FedAdam, FedYogi])
def test_huge_tau_is_sgd(kind: type) -> None:
    tau = 1e4
    outer = kind(lr=0.3 * tau * 1, beta1=0.0, tau=tau)
    deltas = [torch.randn(9) for _ in range(3)]
    # v starts at tau^2, so that sqrt(v) + tau is 2 tau while Delta^2 is small beside it
    torch.testing.assert_close(
        apply(outer, deltas, torch.ones(9)), apply(SGD(lr=0.15), deltas, torch.ones(9)), rtol=5e-2, atol=1e-3
    )


@pytest.mark.parametrize("outer", OUTERS, ids=name)
def test_outer_state_is_fp32_even_for_bf16_models(outer: Outer) -> None:
    p = torch.zeros(3)
    optimizer = outer.build([p])
    p.grad = torch.ones(3)
    optimizer.step()
    tensors = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor) and t.ndim]
    assert all(t.dtype == torch.float32 for t in tensors)


@pytest.mark.parametrize("outer", OUTERS, ids=name)
@pytest.mark.parametrize("lr", [0.0, -1.0, math.nan, math.inf])
def test_bad_outer_lr_is_refused(outer: Outer, lr: float) -> None:
    with pytest.raises(ConfigError, match=r"sync\.outer\.lr = .* Fix: "):
        type(outer)(lr=lr).check()


def test_every_h_counts_from_one() -> None:
    assert [s for s in range(1, 13) if EveryH()(s, 5).sync] == [5, 10]


def test_post_local_switches_after_its_warmup() -> None:
    schedule = PostLocal(warmup_steps=3)
    assert [schedule(s, 4).average_gradients for s in range(1, 6)] == [True, True, True, False, False]
    assert [s for s in range(1, 16) if schedule(s, 4).sync] == [7, 11, 15]


def test_post_local_without_warmup_is_every_h_bit_for_bit() -> None:
    a = toy.trajectory(toy.build(3, schedule=PostLocal(warmup_steps=0)))
    assert a[:-1] == toy.trajectory(toy.build(3, schedule=EveryH()))[:-1]  # the handshake names the schedule


def test_post_local_all_the_way_is_ddp_bit_for_bit() -> None:
    a = toy.trajectory(toy.build(3, schedule=PostLocal(warmup_steps=toy.STEPS)))
    assert a[:-1] == toy.trajectory(toy.build(3, schedule=EveryStep()))[:-1]


def test_h_of_one_with_sgd_inside_and_out_is_synchronous_sgd() -> None:
    """With equal weights: the mean of the islands' steps is the step of the mean gradient."""
    models = [toy.Net() for _ in range(3)]
    inners = [toy.sgd(m) for m in models]
    sync = lowcomm.LocalSGD(models, inners, every=1, outer=SGD(lr=1.0))
    single = toy.Net()
    optimizer = toy.sgd(single)
    for step in range(6):
        for island, (model, inner) in enumerate(zip(models, inners, strict=True)):
            x, y = toy.batch(island, step)
            (model(x) - y).square().mean().backward()
            inner.step()
            inner.zero_grad()
        losses = [(single(x) - y).square().mean() for x, y in (toy.batch(k, step) for k in range(3))]
        torch.stack(losses).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    # rounding differs: one averages weights, the other gradients
    torch.testing.assert_close(
        toy.flat(list(sync.weights().values())), toy.flat(list(single.parameters())), rtol=1e-5, atol=1e-6
    )


def test_fedavg_is_the_token_weighted_mean_of_weights() -> None:
    sync = toy.build(3, outer=SGD(lr=1.0), every=100)
    for step in range(5):
        toy.train_step(sync, step)
    local = torch.stack([toy.flat(r.tensors(sync.state.fragments[0])) for r in sync.replicas])
    weights = torch.tensor([4.0, 5.0, 6.0]) / 15  # examples per batch of each island
    expected = (local * weights[:, None]).sum(0)
    sync.finish()
    torch.testing.assert_close(toy.flat(list(sync.weights().values())), expected, rtol=1e-5, atol=1e-6)


def test_one_island_with_averaging_trains_as_if_alone() -> None:
    sync = toy.build(1, outer=SGD(lr=1.0))
    alone = toy.Net()
    optimizer = toy.adamw(alone)
    for step in range(toy.STEPS):
        toy.train_step(sync, step)
        x, y = toy.batch(0, step)
        (alone(x) - y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    sync.finish()
    # global - (global - local) rounds twice per sync
    torch.testing.assert_close(
        toy.flat(list(sync.weights().values())), toy.flat(list(alone.parameters())), rtol=1e-4, atol=1e-5
    )


def test_ddp_keeps_islands_equal_and_follows_the_mean_gradient() -> None:
    sync = toy.build(3, schedule=EveryStep())
    single = toy.Net()
    optimizer = toy.adamw(single)
    for step in range(8):
        toy.train_step(sync, step)
        losses = [(single(x) - y).square().mean() for x, y in (toy.batch(k, step) for k in range(3))]
        torch.stack(losses).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    sync.finish()
    first, *others = [toy.flat(r.tensors(sync.state.fragments[0])) for r in sync.replicas]
    assert all(torch.equal(first, o) for o in others)
    torch.testing.assert_close(
        first, toy.flat(list(single.parameters())), rtol=1e-3, atol=1e-4
    )  # Adam amplifies rounding


@pytest.mark.parametrize("aggregator", AGGREGATORS, ids=name)
def test_weights_sum_to_one_and_leave_out_zeros(aggregator: lowcomm.aggregate.Aggregator) -> None:
    weights = aggregator.weights([10.0, 0.0, 30.0])
    assert weights[1] == 0
    assert math.isclose(sum(weights), 1.0)
    by_tokens = aggregator == AGGREGATORS[0] or isinstance(aggregator, LossWeighted)
    assert weights[2] == (0.75 if by_tokens else 0.5)
    with pytest.raises(ValueError, match="nothing to average"):
        aggregator.weights([0.0, 0.0])


@pytest.mark.parametrize("aggregator", [a for a in AGGREGATORS if a.needs == "sum"], ids=name)
def test_aggregate_of_contributions_is_the_transport_s_sum(aggregator: lowcomm.aggregate.Aggregator) -> None:
    deltas = [torch.randn(12) for _ in range(3)]
    weights = aggregator.weights([1.0, 2.0, 4.0])
    contributions = [
        Contribution(island=i, delta={"w": d.clone()}, weight=w, round=0)
        for i, (d, w) in enumerate(zip(deltas, weights, strict=True))
    ]
    out = torch.empty(12)
    Simulated(3).weighted_sum(deltas, weights, out)
    torch.testing.assert_close(aggregator(contributions)["w"], out, rtol=1e-6, atol=1e-7)


def test_a_misspelt_weighting_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"aggregator\.by = 'token'"):
        lowcomm.aggregate.Mean(by="token")  # type: ignore[arg-type]
