"""RQM and its accountant: the sampler against the closed form, the closed form against the definition, composition."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowcomm.codec import ErrorFeedback, Rqm, wire
from lowcomm.codec.flat import flatten
from lowcomm.privacy import RqmAccountant
from lowcomm.privacy.rqm_accountant import divergence
from lowcomm.types import ConfigError, PayloadError, Round

ROUND = Round(index=0, step=8, fragments=(0,), seed=99, island=1)
DRAWS = 60_000


def account(codec: Rqm, elements: int = 1) -> RqmAccountant:
    return RqmAccountant(clip=codec.clip, margin=codec.margin, levels=codec.levels, keep=codec.keep, elements=elements)


def by_definition(codec: Rqm, x: float) -> np.ndarray:
    """P(Z = i | x) by trying every set of kept levels."""
    m, reach = codec.levels, codec.clip * (1 + codec.margin)
    levels = [reach * (2 * i - (m - 1)) / (m - 1) for i in range(m)]
    out = np.zeros(m)
    for inner in itertools.product((False, True), repeat=m - 2):
        kept = [0, *(i + 1 for i, k in enumerate(inner) if k), m - 1]
        chance = math.prod(codec.keep if k else 1 - codec.keep for k in inner)
        a = max(i for i in kept[:-1] if levels[i] <= x)
        b = min(i for i in kept if i > a)
        up = (x - levels[a]) / (levels[b] - levels[a])
        out[a] += chance * (1 - up)
        out[b] += chance * up
    return out


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("x", [-1.0, -0.61, 0.0, 0.2, 1.0])
def test_closed_form_is_the_definition(keep: float, x: float) -> None:
    for levels in (2, 4, 8):
        codec = Rqm(clip=1.0, margin=0.7, levels=levels, keep=keep)
        found = account(codec).distribution(x)
        np.testing.assert_allclose(found, by_definition(codec, x), atol=1e-12)


@pytest.mark.parametrize(
    "codec", [Rqm(clip=0.5), Rqm(clip=1.0, margin=0.3, levels=4, keep=0.7), Rqm(clip=1.0, levels=2)]
)
@pytest.mark.parametrize("share", [-1.0, -0.37, 0.0, 0.81])
def test_the_sampler_follows_the_closed_form(codec: Rqm, share: float) -> None:
    """Chi-squared: with f degrees of freedom it is above f + 5 sqrt(2 f) + 12 with a chance under 1e-6."""
    x = torch.full((DRAWS,), share * codec.clip)
    counts = np.bincount(codec.draw(x, 1234, 0).numpy(), minlength=codec.levels)
    expected = account(codec).distribution(float(x[0])) * DRAWS
    assert counts[expected < 1e-9].sum() == 0
    some = expected > 5
    statistic = float((((counts - expected) ** 2) / np.maximum(expected, 1e-9))[some].sum())
    assert statistic < some.sum() + 5 * math.sqrt(2 * some.sum()) + 12


def test_the_mean_is_the_clipped_delta() -> None:
    codec = Rqm(clip=0.5, margin=0.5)
    delta = {"w": torch.linspace(-1.0, 1.0, 41)}
    total = torch.zeros(41)
    for seed in range(2000):
        current = dataclasses.replace(ROUND, seed=seed)
        total += codec.decode(codec.encode(delta, {}, current)[0], delta, current)["w"]
    torch.testing.assert_close(total / 2000, delta["w"].clamp(-0.5, 0.5), rtol=0, atol=0.06)


def test_everything_kept_is_stochastic_rounding() -> None:
    codec, x = Rqm(clip=1.0, margin=0.0, levels=256, keep=1.0), torch.rand(5000) * 2 - 1
    got = codec.values()[codec.draw(x, 3, 0).long()]
    assert float((got - x).abs().max()) <= 2 / 255 + 1e-6
    at_levels = codec.values()[:100].repeat(3)
    assert torch.equal(codec.values()[codec.draw(at_levels, 3, 0).long()], at_levels)


def test_nothing_kept_is_a_coin_between_the_outer_two() -> None:
    codec = Rqm(clip=1.0, keep=0.0)
    assert set(codec.draw(torch.zeros(100), 3, 0).tolist()) == {0, 15}


@pytest.mark.parametrize(("levels", "nbytes"), [(2, 4), (4, 7), (16, 13), (256, 25)])
def test_bits_are_packed(levels: int, nbytes: int) -> None:
    delta = {"w": torch.randn(5, 5)}
    payload, _ = Rqm(levels=levels).encode(delta, {}, ROUND)
    assert payload.nbytes == 64 + nbytes
    if levels < 256:
        bad = payload.data[64:].clone()
        bad[-1] |= 0x80
        with pytest.raises(PayloadError, match="unused bits"):
            Rqm(levels=levels).decode(wire.pack(wire.CodecId.RQM, delta, ROUND, bad), delta)


def test_coins_differ_by_island_round_and_place_and_repeat_on_resume() -> None:
    codec, delta = Rqm(clip=1.0), {"w": torch.zeros(200_000)}
    payloads = [
        codec.encode(delta, {}, dataclasses.replace(ROUND, island=k, seed=s))[0].data[64:]
        for k, s in ((0, 1), (1, 1), (0, 2), (0, 1))
    ]
    assert torch.equal(payloads[0], payloads[3])
    assert not torch.equal(payloads[0], payloads[1]) and not torch.equal(payloads[0], payloads[2])
    assert not torch.equal(payloads[0][:30_000], payloads[0][32_768 : 32_768 + 30_000])  # two parts, two counters


@given(
    clip=st.floats(0.01, 10), margin=st.floats(0, 3), keep=st.floats(0.05, 0.95), alpha=st.floats(1.1, 50),
    x=st.floats(-1, 1), y=st.floats(-1, 1),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_no_pair_beats_the_corners(clip: float, margin: float, keep: float, alpha: float, x: float, y: float) -> None:
    accountant = RqmAccountant(clip=clip, margin=margin, levels=8, keep=keep, elements=1)
    p, q = (accountant.distribution(clip * v) for v in (x, y))
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert divergence(p, q, alpha) <= accountant.rdp(alpha) + 1e-9 or math.isinf(accountant.rdp(alpha))


def test_two_levels_are_randomised_response() -> None:
    """Closed form: p = (1 + 1 / (1 + margin)) / 2."""
    for levels, keep in ((2, 0.5), (16, 0.0)):
        accountant = RqmAccountant(clip=1.0, margin=1.0, levels=levels, keep=keep, elements=1)
        p = 0.75
        assert accountant.rdp(math.inf) == pytest.approx(math.log(p / (1 - p)))
        closed = math.log(p**2 / (1 - p) + (1 - p) ** 2 / p)
        assert accountant.rdp(2.0) == pytest.approx(closed)


def test_more_margin_and_fewer_levels_kept_hide_more() -> None:
    def rho(margin: float, keep: float) -> float:
        return RqmAccountant(clip=1.0, margin=margin, levels=16, keep=keep, elements=1).rdp(2.0)

    assert rho(2.0, 0.5) < rho(1.0, 0.5) < rho(0.5, 0.5)
    assert rho(1.0, 0.2) < rho(1.0, 0.5) < rho(1.0, 0.8)
    assert RqmAccountant(clip=1.0, margin=0.0, levels=16, keep=0.5, elements=1).epsilon(1, 1e-5) == math.inf


def test_epsilon_per_round_and_in_total() -> None:
    accountant = RqmAccountant(clip=1.0, margin=4.0, levels=16, keep=0.3, elements=10)
    report = accountant.report(rounds=100, delta=1e-5)
    assert 0 < report["epsilon_per_round"] < report["epsilon_total"] < 100 * report["epsilon_per_round"]
    assert report["rounds"] == 100 and report["delta"] == 1e-5
    assert accountant.epsilon(0, 1e-5) == 0
    assert accountant.epsilon(1, 1e-5) <= 10 * accountant.rdp(math.inf)
    # 100 rounds of 10 elements are 1000 rounds of one
    one = dataclasses.replace(accountant, elements=1)
    assert one.epsilon(1000, 1e-5) == pytest.approx(report["epsilon_total"])


def test_epsilon_holds_in_simulation() -> None:
    """Tail of the privacy loss of 40 draws at the worst pair: P(loss > epsilon) <= delta, which Renyi bounds above."""
    accountant = RqmAccountant(clip=1.0, margin=1.0, levels=16, keep=0.5, elements=40)
    p, q = accountant.distribution(1.0), accountant.distribution(-1.0)
    draws = np.random.default_rng(0).choice(16, size=(20_000, 40), p=p)
    loss = np.log(p / q)[draws].sum(axis=1)
    delta = 0.01
    epsilon = accountant.epsilon(1, delta)
    hidden = np.maximum(0, 1 - np.exp(epsilon - loss)).mean()  # the exact delta of this pair at that epsilon
    assert hidden <= delta
    assert epsilon < 3 * np.quantile(loss, 0.99)  # and it is not idle


def test_error_feedback_sends_what_the_noise_hid() -> None:
    delta = {"w": torch.randn(300, generator=torch.Generator().manual_seed(0)) * 0.1}
    feedback = ErrorFeedback(codec=Rqm(clip=0.5))
    state, total = feedback.init(delta), torch.zeros(300)
    for index in range(60):
        current = dataclasses.replace(ROUND, index=index, seed=index)
        payload, state = feedback.encode(delta, state, current)
        total += flatten(feedback.decode(payload, delta, current))
    assert float((total / 60 - delta["w"]).norm()) < 0.3 * float(delta["w"].norm())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_input_that_is_not_finite_is_named(bad: float) -> None:
    delta = {"w": torch.zeros(3), "b": torch.tensor(bad)}
    with pytest.raises(PayloadError, match="tensor b of the pseudo-gradient is NaN or infinite"):
        Rqm().encode(delta, {}, ROUND)


@pytest.mark.parametrize(
    ("codec", "field"),
    [(Rqm(clip=0.0), "clip"), (Rqm(margin=-1.0), "margin"), (Rqm(levels=8), "levels"), (Rqm(keep=1.5), "keep")],
)
def test_settings_out_of_range(codec: Rqm, field: str) -> None:
    with pytest.raises(ConfigError, match=f"codec.{field} = "):
        codec.check()
    with pytest.raises(ConfigError):
        account(dataclasses.replace(codec, levels=1)) if field == "levels" else account(codec)
