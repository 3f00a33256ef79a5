"""Privacy mechanisms and their accountant by themselves: bounds, noise, quantiles, epsilon, samplers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting.pld import PLDAccountant

from lowcomm.data.windows import TextWindows, WindowShard
from lowcomm.island import InnerConfig, PlainIsland, PrivateIsland
from lowcomm.privacy import AdaptiveClip, ClientGaussian, Draw, Mechanism, Released, add_noise, clip_to, epsilon, norm
from lowcomm.run.privacy_spent import participations
from lowcomm.types import ConfigError, Delta
from tests.methods import MECHANISMS

CLIENT = [m for m in MECHANISMS if m.level == "client"]


def deltas(scale: float, seed: int) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(40, 30, generator=generator) * scale, "b": torch.randn(7, generator=generator) * scale}


@pytest.mark.parametrize("mechanism", CLIENT, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e6, 1e15])
def test_what_leaves_is_within_the_sensitivity(mechanism: Mechanism, scale: float) -> None:
    silent = replace(mechanism, noise_multiplier=0.0)
    delta, before = deltas(scale, 3), deltas(scale, 3)
    silent.clip_and_noise(delta, Draw(seed=5, shares=4), silent.init())
    size = norm(list(delta.values()))
    assert size <= silent.sensitivity
    if norm(list(before.values())) <= silent.sensitivity:
        assert all(torch.equal(delta[n], before[n]) for n in delta)  # nothing to clip: the same bits
    else:
        assert size > 0.9999 * silent.sensitivity


@pytest.mark.parametrize("mechanism", CLIENT, ids=lambda m: type(m).__name__)
def test_the_sum_over_islands_has_the_noise_that_is_stated(mechanism: Mechanism) -> None:
    size, islands, state = 200_000, 4, mechanism.init()
    total = torch.zeros(size, dtype=torch.float64)
    for k in range(islands):
        own = {"w": torch.zeros(size)}
        mechanism.clip_and_noise(own, Draw(seed=1000 + k, shares=islands), state)
        total += own["w"].double()
        assert float(own["w"].std()) < 0.6 * float(mechanism.sensitivity * 2)
    z = mechanism.delta_multiplier if isinstance(mechanism, AdaptiveClip) else mechanism.noise_multiplier
    assert float(total.std()) == pytest.approx(z * mechanism.sensitivity, rel=0.01)
    assert abs(float(total.mean())) < 5 * z * mechanism.sensitivity / math.sqrt(size)


def test_the_adaptive_clip_finds_the_quantile_and_pays_for_it() -> None:
    norms = np.exp(np.random.default_rng(0).normal(size=200))
    mechanism = AdaptiveClip(clip=0.01, noise_multiplier=0.5, bit_noise=5.0, quantile=0.7, seed=0)
    state = mechanism.init()
    for round_index in range(120):
        told: dict[int, float] = {}
        for k, size in enumerate(norms):
            draw = Draw(seed=round_index * 1000 + k, shares=len(norms))
            bit = mechanism.clip_and_noise({"w": torch.tensor([float(size)])}, draw, state)
            assert bit is not None
            told[k] = bit
        state = mechanism.learn(state, told)
    assert (norms <= state["clip"]).mean() == pytest.approx(0.7, abs=0.06)
    assert mechanism.delta_multiplier > 0.5
    assert pytest.approx(mechanism.delta_multiplier**-2 + (2 * 5.0) ** -2) == 0.5**-2
    still = replace(mechanism, rate=0.0)
    assert still.learn(state, {0: 0.5, 1: 0.5}) == state


@pytest.mark.parametrize(("z", "count"), [(1.0, 1), (1.1, 4), (4.0, 40)])
def test_epsilon_is_that_of_the_pld_accountant(z: float, count: int) -> None:
    accountant = PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(z), count)
    found = epsilon([Released(noise_multiplier=z, count=count)], 1e-5)
    assert found == pytest.approx(accountant.get_epsilon(1e-5), rel=0.005)
    mu = (
        math.sqrt(count) / z
    )  # Balle and Wang, arXiv 1805.06530, theorem 8: delta of a Gaussian mechanism, in closed form
    below = 0.5 * math.erfc(-(mu / 2 - found / mu) / math.sqrt(2))
    above = 0.5 * math.erfc((mu / 2 + found / mu) / math.sqrt(2))
    assert below - math.exp(found) * above == pytest.approx(1e-5, rel=0.005)


def test_epsilon_with_poisson_sampling_and_at_the_ends() -> None:
    accountant = PLDAccountant()
    accountant.compose(dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.0)), 5)
    sampled = Released(noise_multiplier=1.0, count=5, probability=0.1)
    assert epsilon([sampled], 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=0.005)
    assert epsilon([sampled], 1e-5) < epsilon([replace(sampled, probability=1.0)], 1e-5)
    assert epsilon([replace(sampled, count=0)], 1e-5) == 0
    assert epsilon([replace(sampled, noise_multiplier=0.0)], 1e-5) == math.inf
    for delta in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="delta = "):
            epsilon([sampled], delta)


@pytest.mark.parametrize(("windows", "per_step"), [(12, 4), (13, 4), (9, 9), (10, 7), (30, 4)])
def test_participations_are_those_of_the_shard_that_runs(windows: int, per_step: int) -> None:
    """Each sequence of a real shard, counted: no one costs more than the ledger says."""
    stream = np.arange(windows * 8 + 1, dtype=np.int32)
    shard = WindowShard(
        TextWindows(stream, 8), seq_len=8, batch_size=per_step, part=0, parts=1, seeds=(3,), identity={}
    )
    squares: Counter[int] = Counter()
    for steps in range(1, 30):
        inputs, _ = shard.next_batch()
        for first, times in Counter(inputs[:, 0].tolist()).items():
            squares[first] += times**2
        told = sum(r.count / r.noise_multiplier**2 for r in participations(windows, per_step, steps, 1.0))
        assert max(squares.values()) <= told
        if windows % per_step == 0:
            assert max(squares.values()) == told


def island(kind: type[PlainIsland], clip: float, noise: float) -> PlainIsland:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(11, 6), torch.nn.Linear(6, 11))
    made = kind(
        model,
        InnerConfig(),
        steps=4,
        seed=0,
        losses=lambda m, x, y: torch.nn.functional.cross_entropy(m(x).flatten(0, 1), y.flatten(), reduction="none"),
    )
    if isinstance(made, PrivateIsland):
        made.clip_each = lambda tensors: clip_to(tensors, clip)
        made.add_noise = lambda tensors: add_noise(tensors, noise * clip, 7)
    return made


def gradient(of: PlainIsland) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in of.params if p.grad is not None])


def test_private_gradients_are_clipped_one_by_one() -> None:
    ids = torch.arange(24).view(4, 6) % 11
    batch = (ids, (ids + 1) % 11)
    plain, unclipped = island(PlainIsland, 0, 0), island(PrivateIsland, 1e30, 0.0)
    assert unclipped.backward([batch]) == pytest.approx(plain.backward([batch]), rel=1e-6)
    torch.testing.assert_close(gradient(unclipped), gradient(plain), rtol=1e-5, atol=1e-8)
    total = torch.zeros_like(gradient(plain))
    for i in range(4):
        one = island(PlainIsland, 0, 0)
        one.backward([(batch[0][i : i + 1], batch[1][i : i + 1])])
        size = float(gradient(one).norm())
        assert size > 0.05
        total += gradient(one) * (0.05 / size)
    clipped = island(PrivateIsland, 0.05, 0.0)
    clipped.backward([(batch[0][:1], batch[1][:1]), (batch[0][1:], batch[1][1:])])  # micro-batches add up
    torch.testing.assert_close(gradient(clipped), total / 4, rtol=1e-4, atol=1e-8)
    assert float(gradient(clipped).norm()) <= 0.05
    noisy = island(PrivateIsland, 0.05, 3.0)
    noisy.backward([batch])
    drawn = (gradient(noisy) - gradient(clipped)) * 4
    assert float(drawn.std()) == pytest.approx(3.0 * 0.05, rel=0.2)  # 143 values


def test_one_sequence_at_a_time_gives_the_plain_bits() -> None:
    batch = (torch.arange(6).view(1, 6), torch.arange(1, 7).view(1, 6))
    plain, private = island(PlainIsland, 0, 0), island(PrivateIsland, 1e30, 0.0)
    assert plain.backward([batch]) == private.backward([batch])
    assert torch.equal(gradient(plain), gradient(private))


@pytest.mark.parametrize(
    ("mechanism", "field"),
    [
        (ClientGaussian(clip=0.0), "clip"),
        (ClientGaussian(clip=math.inf), "clip"),
        (ClientGaussian(noise_multiplier=-1.0), "noise_multiplier"),
        (ClientGaussian(noise_multiplier=math.nan), "noise_multiplier"),
        (ClientGaussian(delta=0.0), "delta"),
        (ClientGaussian(delta=1.0), "delta"),
        (ClientGaussian(budget=0.0), "budget"),
        (ClientGaussian(budget=-2.0), "budget"),
        (ClientGaussian(budget=3.0, noise_multiplier=0.0), "budget"),
        (ClientGaussian(seed=-1), "seed"),
        (AdaptiveClip(quantile=1.0), "quantile"),
        (AdaptiveClip(rate=-1.0), "rate"),
        (AdaptiveClip(noise_multiplier=2.0, bit_noise=1.0), "bit_noise"),
    ],
)
def test_settings_out_of_range(mechanism: Mechanism, field: str) -> None:
    with pytest.raises(ConfigError, match=f"^sync.privacy.{field} = ") as caught:
        mechanism.check()
    assert "Fix: " in str(caught.value) and "\n" not in str(caught.value)


def test_usual_settings_are_fine() -> None:
    for mechanism in MECHANISMS:
        mechanism.check()
        replace(mechanism, budget=1.0).check()
