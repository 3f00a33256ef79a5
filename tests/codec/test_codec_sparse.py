"""Sparse codecs: what they reduce to, which entries they send, what they cost, what they refuse."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowcomm.codec import Codec, ErrorFeedback, PartialSharing, RandomK, Threshold, TopK, elias_fano, wire
from lowcomm.codec.flat import flatten
from lowcomm.codec.sparse import Sparse
from lowcomm.types import ConfigError, Delta, Payload, PayloadError, Round
from tests.methods import name

ROUND = Round(index=2, step=8, fragments=(0,), seed=2**63 + 99, island=1)
SHAPES = {"a": (71, 31), "one": (), "b": (255,), "none": (3, 0), "c": (4, 5, 6)}
SPARSE: tuple[Sparse, ...] = (
    TopK(chunk=256, k=16), TopK(bits=8, chunk=100, k=7), TopK(bits=16), RandomK(chunk=64, k=8, bits=16),
    PartialSharing(chunk=64, k=10, bits=16), Threshold(rms=1.0), Threshold(rms=2.0, bits=16),
)  # fmt: skip


def deltas(seed: int = 0, scale: float = 1.0) -> Delta:
    g = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(s, generator=g) for n, s in SHAPES.items()}


def through(codec: Codec, delta: Delta, round: Round = ROUND) -> Delta:
    payload, _ = codec.encode(delta, codec.init(delta), round)
    return codec.decode(payload, delta, round)


@pytest.mark.parametrize(
    "codec",
    [
        TopK(chunk=100, k=100, bits=16), RandomK(chunk=100, k=100, bits=16), PartialSharing(chunk=64, k=64, bits=16),
        RandomK(chunk=100, k=100, bits=16, unbiased=True), Threshold(rms=0.0, bits=16),
    ],
    ids=name,
)  # fmt: skip
def test_everything_kept_is_the_identity(codec: Sparse) -> None:
    delta = {n: d.bfloat16().float() for n, d in deltas().items()}
    got = through(codec, delta)
    assert all(torch.equal(got[n], d) for n, d in delta.items())


def test_top_k_keeps_the_largest() -> None:
    flat = flatten(deltas())
    got = flatten(through(TopK(chunk=100, k=7, bits=16), deltas()))
    for start in range(0, flat.numel() // 100 * 100, 100):
        wanted = flat[start : start + 100].abs().topk(7).indices.sort().values
        assert torch.equal(got[start : start + 100].nonzero().flatten(), wanted)


def test_threshold_keeps_what_is_above_it() -> None:
    flat = flatten(deltas())
    got = flatten(through(Threshold(rms=1.5, bits=16), deltas()))
    bound = 1.5 * float(flat.double().square().mean().sqrt())
    assert torch.equal(got != 0, flat.abs() >= bound)


def test_random_entries_are_shared_by_islands_and_change_with_the_round() -> None:
    codec, delta = RandomK(chunk=64, k=8, bits=16), deltas()
    sets = []
    for seed, island in ((1, 0), (1, 3), (2, 0)):
        sets.append(flatten(through(codec, delta, dataclasses.replace(ROUND, seed=seed, island=island))) != 0)
    assert torch.equal(sets[0], sets[1])
    assert not torch.equal(sets[0], sets[2])
    assert int(sets[0][:64].sum()) == 8


def test_unbiased_random_entries_have_the_right_mean() -> None:
    codec, delta = RandomK(chunk=64, k=16, bits=16, unbiased=True), deltas()
    total = torch.zeros(flatten(delta).numel())
    for seed in range(300):
        total += flatten(through(codec, delta, dataclasses.replace(ROUND, seed=seed)))
    error = float((total / 300 - flatten(delta)).norm() / flatten(delta).norm())
    assert error == pytest.approx((3 / 300) ** 0.5, rel=0.15)  # variance n / k - 1 = 3 of each, over 300


@pytest.mark.parametrize("apart", [False, True])
def test_partial_sharing_takes_turns(apart: bool) -> None:
    codec, delta = PartialSharing(chunk=64, k=10, bits=16, apart=apart), deltas()
    state, seen = codec.init(delta), torch.zeros(flatten(delta).numel())
    first = codec.decode(codec.encode(delta, state, dataclasses.replace(ROUND, island=0))[0], delta)
    other = codec.decode(codec.encode(delta, state, dataclasses.replace(ROUND, island=3))[0], delta)
    assert torch.equal(flatten(first), flatten(other)) is not apart
    for index in range(7):
        current = dataclasses.replace(ROUND, index=index, seed=index)
        payload, state = codec.encode(delta, state, current)
        seen += flatten(codec.decode(payload, delta, current)) != 0
    assert bool((seen >= 1).all())  # ceil(64 / 10) turns
    assert bool((seen[:64] <= 2).all())
    assert int(state["turn"]) == 7


def test_bits_on_the_wire() -> None:
    """SparseLoCo's setting on 30M parameters, header, scales and indices included: at most 0.162 bits each."""
    delta = {"w": torch.randn(7000, 4096, generator=torch.Generator().manual_seed(0)), "b": torch.ones(1_328_001)}
    parameters = 7000 * 4096 + 1_328_001
    payload, _ = TopK().encode(delta, {}, ROUND)
    assert 8 * payload.nbytes / parameters <= 0.162
    tail = 11 + 4 + 4 + 2  # 897 elements keep 14: 6 low bits of each, 28 bits of bitmap, 28 bits of codes, a scale
    assert payload.nbytes == 64 + 7324 * (48 + 16 + 16 + 2) + tail


@pytest.mark.parametrize("codec", SPARSE, ids=name)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_input_that_is_not_finite_is_named(codec: Sparse, bad: float) -> None:
    delta = deltas()
    delta["c"][3, 4, 5] = bad
    with pytest.raises(PayloadError, match="tensor c of the pseudo-gradient is NaN or infinite"):
        codec.encode(delta, codec.init(delta), ROUND)
    feedback = ErrorFeedback(codec=codec)
    state = feedback.init(delta)
    with pytest.raises(PayloadError, match="tensor c "):
        feedback.encode(delta, state, ROUND)
    assert not bool(state["error"].any())


@pytest.mark.parametrize("codec", SPARSE, ids=name)
def test_error_feedback_carries_what_was_lost(codec: Sparse) -> None:
    """Fused and generic ways agree bit for bit, and the error is what its definition says."""
    feedback, delta = ErrorFeedback(codec=codec, beta=0.9), deltas()
    state = feedback.init(delta)
    for index in range(3):
        current = dataclasses.replace(ROUND, index=index, seed=index)
        before = {k: t.clone() for k, t in state.items()}
        wanted = state["error"] * 0.9 + flatten(delta)
        payload, after = feedback.encode(delta, state, current)
        assert all(torch.equal(state[k], t) for k, t in before.items())
        assert torch.equal(after["error"], wanted - flatten(feedback.decode(payload, delta, current)))
        left = torch.empty_like(state["error"])
        inner = feedback.inner_state(state)
        generic, _ = Codec.encode_fed_back(codec, delta, state["error"], left, 0.9, inner, current)
        assert torch.equal(generic.data, payload.data)
        assert torch.equal(left, after["error"])
        state = after


@pytest.mark.parametrize(
    "codec", [TopK(chunk=64, k=8), RandomK(chunk=64, k=8), PartialSharing(chunk=64, k=8)], ids=name
)
def test_error_feedback_sends_everything_in_the_end(codec: Sparse) -> None:
    delta, feedback = deltas(), ErrorFeedback(codec=codec)
    state, total, gaps = feedback.init(delta), torch.zeros(flatten(delta).numel()), list[float]()
    for index in range(200):
        current = dataclasses.replace(ROUND, index=index, seed=index * 977)
        payload, state = feedback.encode(delta, state, current)
        total += flatten(feedback.decode(payload, delta, current))
        gaps.append(float((total / (index + 1) - flatten(delta)).norm() / flatten(delta).norm()))
    assert gaps[-1] < 0.12 < 0.7 < gaps[0]


@pytest.mark.parametrize("codec", SPARSE, ids=name)
def test_accumulate_is_decode_times_weight(codec: Sparse) -> None:
    delta = deltas()
    payload, _ = codec.encode(delta, codec.init(delta), ROUND)
    decoded, total = codec.decode(payload, delta, ROUND), deltas(seed=5)
    expected = {n: t + decoded[n] * 0.3 for n, t in total.items()}
    codec.accumulate(payload, 0.3, total, ROUND)
    assert all(torch.equal(total[n], e) for n, e in expected.items())


@given(places=st.sets(st.integers(0, 5000), max_size=300), extra=st.integers(0, 3000))
@settings(deadline=None, max_examples=60)
def test_elias_fano_round_trip(places: set[int], extra: int) -> None:
    wanted = torch.tensor(sorted(places), dtype=torch.int64)
    n = max(places, default=0) + 1 + extra
    packed = elias_fano.encode(wanted, n)
    assert torch.equal(elias_fano.decode(packed, n, len(wanted)), wanted)
    assert packed.numel() == sum(elias_fano.sizes(n, len(wanted))[1:])
    if len(wanted):
        assert 8 * packed.numel() <= len(wanted) * (3 + max(0, n // len(wanted)).bit_length()) + 16


@given(data=st.binary(min_size=0, max_size=60), n=st.integers(1, 300), m=st.integers(0, 40))
@settings(deadline=None, max_examples=200)
def test_elias_fano_takes_only_what_it_makes(data: bytes, n: int, m: int) -> None:
    m = min(n, m)
    size = sum(elias_fano.sizes(n, m)[1:])
    packed = torch.tensor(list((data * (size + 1))[:size]) if data else [0] * size, dtype=torch.uint8)
    try:
        places = elias_fano.decode(packed, n, m)
    except PayloadError:
        return
    assert torch.equal(elias_fano.encode(places, n), packed)


def test_elias_fano_has_no_loose_bits() -> None:
    places = torch.tensor([3, 70, 71], dtype=torch.int64)  # 5 low bits each, so one bit of the second byte is unused
    packed = elias_fano.encode(places, 128)
    assert elias_fano.sizes(128, 3) == (5, 2, 1)
    packed[1] |= 0x80
    with pytest.raises(PayloadError, match="not Elias-Fano"):
        elias_fano.decode(packed, 128, 3)


def forged(codec: Sparse, delta: Delta, place: int, flipped: int) -> Payload:
    payload, _ = codec.encode(delta, codec.init(delta), ROUND)
    body = payload.data[wire.HEADER_BYTES :].clone()
    body[place] ^= flipped
    return wire.pack(codec.codec_id, delta, ROUND, body)


def test_bad_sides_are_refused() -> None:
    delta = deltas()
    with pytest.raises(PayloadError, match="indices do not ascend"):
        TopK(chunk=256, k=16).decode(forged(TopK(chunk=256, k=16), delta, 8, 1), delta)
    with pytest.raises(PayloadError, match="turn is "):
        PartialSharing().decode(forged(PartialSharing(), delta, 6, 1), delta)
    for value in (0x7F, 0xFF):
        with pytest.raises(PayloadError, match=r"entries, expected 0 to"):
            Threshold().decode(forged(Threshold(), delta, 7, value), delta)
    with pytest.raises(PayloadError, match="no encoder writes"):
        codec, ones = RandomK(bits=16, chunk=64, k=8), {"w": torch.ones(64)}
        codec.decode(forged(codec, ones, 1, 0x40), ones)  # 0x3F80, which is 1, becomes 0x7F80


@pytest.mark.parametrize(
    ("codec", "field"),
    [
        (TopK(chunk=0), "codec.chunk"), (TopK(chunk=65537), "codec.chunk"), (TopK(k=0), "codec.k"),
        (TopK(chunk=64, k=65), "codec.k"), (RandomK(k=4097), "codec.k"), (PartialSharing(chunk=-1), "codec.chunk"),
        (Threshold(rms=-1.0), "codec.rms"), (Threshold(rms=float("nan")), "codec.rms"),
        (TopK(bits=4), "codec.bits"),  # pyright: ignore[reportArgumentType]
    ],
)  # fmt: skip
def test_settings_out_of_range(codec: Sparse, field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} = "):
        codec.check()
