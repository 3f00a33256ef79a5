"""DCT and top-k: the transform's reduction, where coefficients go, DeMo's momentum, what is refused."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lowcomm.codec import BF16, DctTopK, ErrorFeedback, TopK, wire
from lowcomm.codec.dct_topk import grouped
from lowcomm.codec.flat import flatten
from lowcomm.types import ConfigError, Delta, PayloadError, Round

ROUND = Round(index=0, step=8, fragments=(0,), seed=99, island=1)
SHAPES = {"a": (130, 70), "one": (), "b": (255,), "none": (3, 0), "c": (64, 8, 8), "thin": (300, 3), "flat": (3, 300)}


def deltas(seed: int = 0) -> Delta:
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=g) for n, s in SHAPES.items()}


def through(codec: TopK, delta: Delta) -> Delta:
    return codec.decode(codec.encode(delta, {}, ROUND)[0], delta, ROUND)


def test_everything_kept_is_the_identity_within_rounding() -> None:
    """bfloat16 coefficients: 2**-9 of each, so of the norm, since the transform is orthonormal."""
    delta = deltas()
    got = through(DctTopK(k=4096, bits=16), delta)
    assert all(got[name].shape == d.shape for name, d in delta.items())
    for group in (("a",), ("c",), ("one", "b", "none", "thin", "flat")):
        wanted, found = (flatten({n: x[n] for n in group}) for x in (delta, got))
        assert float((found - wanted).norm()) <= 2**-8 * float(wanted.norm())


def test_a_wave_is_one_coefficient() -> None:
    n = torch.arange(64)
    wave = torch.cos(math.pi * (2 * n + 1) * 5 / 128)
    delta = {"w": torch.outer(wave, torch.cos(math.pi * (2 * n + 1) * 9 / 128)), "v": 3 * wave}
    payload, _ = DctTopK(k=1, bits=16).encode(delta, {}, ROUND)
    got = DctTopK(k=1, bits=16).decode(payload, delta)
    for name, d in delta.items():
        torch.testing.assert_close(got[name], d, rtol=0, atol=0.01 * float(d.abs().max()))
    assert payload.nbytes < 64 + 2 * 16


def test_which_tensors_are_matrices() -> None:
    matrices, rest = grouped(deltas())
    assert matrices == {"a": (130, 70), "c": (64, 64)}
    assert rest == 1 + 255 + 900 + 900
    assert DctTopK().space(deltas()) == 6 * 4096 + 4096 + 33 * 64


@pytest.mark.parametrize("shape", [(64, 64), (65,), ()])
def test_one_kind_of_tensor_alone(shape: tuple[int, ...]) -> None:
    delta = {"w": torch.randn(shape)}
    got = through(DctTopK(k=4096, bits=16), delta)
    torch.testing.assert_close(got["w"], delta["w"], rtol=0.02, atol=0.02)


def test_demo_is_error_feedback_with_a_decay() -> None:
    """m <- beta m + Delta - what was sent."""
    delta, feedback = deltas(), ErrorFeedback(codec=DctTopK(k=64), beta=0.9)
    state, m = feedback.init(delta), torch.zeros(flatten(delta).numel())
    for index in range(3):
        current = dataclasses.replace(ROUND, index=index)
        payload, state = feedback.encode(delta, state, current)
        m = m * 0.9 + flatten(delta) - flatten(feedback.decode(payload, delta, current))
        torch.testing.assert_close(state["error"], m, rtol=1e-5, atol=1e-6)


def test_smooth_deltas_need_fewer_entries_than_top_k() -> None:
    x = torch.linspace(0, 3, 128)
    delta = {"w": torch.outer(torch.sin(x), torch.exp(-x))}
    codecs = DctTopK(k=16, bits=16), TopK(k=16, bits=16)
    transformed, plain = (float((through(c, delta)["w"] - delta["w"]).norm()) for c in codecs)
    assert transformed < 0.05 * plain


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
def test_an_input_that_is_not_finite_is_named(bad: float) -> None:
    delta = deltas()
    delta["b"][7] = bad
    with pytest.raises(PayloadError, match="tensor b of the pseudo-gradient is NaN or infinite"):
        DctTopK().encode(delta, {}, ROUND)


def test_coefficients_that_overflow_are_refused_on_both_sides() -> None:
    huge = {"w": torch.full((64, 64), 1e38)}
    with pytest.raises(PayloadError, match="too large"):
        DctTopK().encode(huge, {}, ROUND)
    codec = DctTopK(k=4096, bits=16)
    body = codec.encode({"w": torch.zeros(64, 64)}, {}, ROUND)[0].data[wire.HEADER_BYTES :].clone()
    body[-2 * 4096 :] = torch.tensor([0x7F, 0x7F], dtype=torch.uint8).repeat(4096)
    with pytest.raises(PayloadError, match="overflow"):
        codec.decode(wire.pack(wire.CodecId.DCT_TOP_K, huge, ROUND, body), huge)


def test_values_in_another_coding() -> None:
    codec, delta = DctTopK(k=4096) | BF16(), deltas()
    got = codec.decode(codec.encode(delta, {}, ROUND)[0], delta, ROUND)
    assert float((flatten(got) - flatten(delta)).norm()) <= 2**-8 * float(flatten(delta).norm())


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"codec.chunk = 64 .*4096"):
        DctTopK(chunk=64, k=8).check()
    with pytest.raises(ConfigError, match=r"codec\.k = 0"):
        DctTopK(k=0).check()
