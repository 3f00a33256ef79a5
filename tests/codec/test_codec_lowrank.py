"""PowerSGD: exact on matrices of low rank, warm start, a rank and bits that follow the spectrum."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from lowcomm.codec import ErrorFeedback, PowerSGD, State, wire
from lowcomm.codec.low_rank import effective_rank, power_step, product
from lowcomm.types import ConfigError, Delta, PayloadError, Round

ROUND = Round(index=0, step=8, fragments=(0,), seed=99, island=1)


def matrix(m: int, n: int, strengths: list[float], seed: int = 0) -> Tensor:
    """fp32 [m, n] with these singular values."""
    g = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(m, len(strengths), generator=g)).Q
    v = torch.linalg.qr(torch.randn(n, len(strengths), generator=g)).Q
    return (u * torch.tensor(strengths)) @ v.T


def rounds_of(codec: PowerSGD, delta: Delta, rounds: int, state: State | None = None) -> tuple[Delta, State]:
    state, out = codec.init(delta) if state is None else state, Delta()
    for index in range(rounds):
        current = dataclasses.replace(ROUND, index=index)
        payload, state = codec.encode(delta, state, current)
        out = codec.decode(payload, delta, current)
    return out, state


def test_full_rank_is_the_identity() -> None:
    delta = {"w": torch.randn(20, 30), "s": torch.tensor(2.5), "none": torch.zeros(0, 4), "b": torch.randn(7)}
    out, _ = rounds_of(PowerSGD(rank=20, bits=32), delta, 1)
    assert all(torch.equal(out[n], d) for n, d in delta.items())


def test_a_matrix_of_low_rank_survives_one_round() -> None:
    delta = {"w": matrix(60, 40, [5.0, 1.0, 0.2]), "b": torch.randn(7).bfloat16().float(), "c": torch.zeros(50, 8, 5)}
    out, _ = rounds_of(PowerSGD(rank=3, bits=32), delta, 1)
    torch.testing.assert_close(out["w"], delta["w"], rtol=0, atol=1e-5)
    assert torch.equal(out["b"], delta["b"])
    assert not bool(out["c"].any())


def test_warm_start_finds_the_best_rank() -> None:
    """The error of one round is worse than the best of that rank (Eckart and Young), that of ten rounds is not."""
    strengths = [1.0, 0.8, 0.6, 0.3, 0.3, 0.3, 0.3, 0.3]
    delta = {"w": matrix(64, 48, strengths)}
    best = sum(s * s for s in strengths[3:]) ** 0.5
    errors = [float((rounds_of(PowerSGD(rank=3, bits=32), delta, k)[0]["w"] - delta["w"]).norm()) for k in (1, 10)]
    assert errors[0] > 1.02 * best
    assert errors[1] < 1.001 * best


def test_cost_in_bytes() -> None:
    delta = {"w": torch.randn(64, 96), "v": torch.randn(2, 3), "b": torch.randn(10)}
    payload, _ = PowerSGD(rank=2).encode(delta, PowerSGD(rank=2).init(delta), ROUND)
    assert payload.nbytes == 64 + 2 * 2 + 2 * (64 + 96) * 2 + 2 * 16  # v would not get smaller
    eight = PowerSGD(rank=2, bits=8)
    payload, _ = eight.encode(delta, eight.init(delta), ROUND)
    assert payload.nbytes == 64 + 2 * 2 + (320 + 2 * 2) + 2 * 16


def test_rank_and_bits_fall_with_the_spectrum_and_rise_again() -> None:
    codec = PowerSGD(rank=6, bits=16, energy=0.95, window=3)
    wide, narrow = {"w": matrix(64, 48, [1.0] * 6)}, {"w": matrix(64, 48, [1.0, 0.01])}
    _, state = rounds_of(codec, wide, 4)
    _, state = rounds_of(codec, narrow, 4, state)
    _, state = rounds_of(codec, wide, 6, state)
    ranks, bits = state["schedule"][:, 1].tolist(), state["schedule"][:, 2].tolist()
    assert ranks[:4] == [6, 6, 6, 6]
    assert ranks[4:8] == [5, 3, 1, 1]  # means over three rounds, rounded up
    assert bits[:8] == [16, 16, 16, 16, 16, 8, 8, 8]
    assert (ranks[-1], bits[-1]) == (6, 16)
    assert state["schedule"][:, 0].tolist() == [*range(4), *range(4), *range(6)]
    assert state["q.w"].shape == (48, 6)


def test_bytes_fall_with_the_rank() -> None:
    codec, delta = PowerSGD(rank=6, energy=0.95, window=1), {"w": matrix(64, 48, [1.0, 0.01])}
    narrow, _ = codec.encode(delta, codec.init(delta), ROUND)
    delta = {"w": matrix(64, 48, [1.0] * 6)}
    wide, _ = codec.encode(delta, codec.init(delta), ROUND)
    assert wide.nbytes - narrow.nbytes == 2 * 6 * 112 - (112 + 2)
    assert not codec.fixed_size and PowerSGD().fixed_size


@pytest.mark.parametrize(
    ("strengths", "rank"), [([1.0, 0.0], 1), ([1.0, 1.0], 2), ([3.0, 1.0, 0.1], 2), ([0.0] * 3, 1)]
)
def test_effective_rank(strengths: list[float], rank: int) -> None:
    assert effective_rank(torch.tensor(strengths), 0.95) == rank


def test_zeros_do_not_spoil_the_warm_start() -> None:
    codec, zero = PowerSGD(rank=2), {"w": torch.zeros(40, 30)}
    start = codec.init(zero)
    out, state = rounds_of(codec, zero, 2, start)
    assert torch.equal(state["q.w"], start["q.w"])
    assert not bool(out["w"].any())


def test_subnormal_matrices_are_zeros_and_stay_in_the_error() -> None:
    delta = {"w": torch.full((40, 30), 1e-40)}
    feedback = ErrorFeedback(codec=PowerSGD(rank=2))
    payload, state = feedback.encode(delta, feedback.init(delta), ROUND)
    assert not bool(feedback.decode(payload, delta)["w"].any())
    assert torch.equal(state["error"], delta["w"].flatten())


@pytest.mark.parametrize("scale", [1e-25, 1e-10, 1e15, 1e37])
def test_sizes_at_the_ends_of_fp32(scale: float) -> None:
    delta = {"w": matrix(40, 30, [1.0, 0.5]) * scale}
    out, _ = rounds_of(PowerSGD(rank=2, bits=32), delta, 2)
    assert float((out["w"].double() - delta["w"].double()).norm()) < 1e-2 * float(delta["w"].double().norm())


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    g = torch.Generator().manual_seed(3)
    delta = {"w": torch.randn(300, 500, generator=g)}
    codec, before, seen = PowerSGD(rank=4), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            seen.append(codec.encode(delta, codec.init(delta), ROUND)[0].data)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(seen[0], seen[1])


def test_products_run_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every BLAS splits sums over threads, but some do."""
    seen, real, before = list[int](), torch.linalg.qr, torch.get_num_threads()

    def recorded(x: Tensor) -> object:
        seen.append(torch.get_num_threads())
        return real(x)

    monkeypatch.setattr(torch.linalg, "qr", recorded)
    try:
        torch.set_num_threads(2)
        power_step(torch.randn(30, 20), torch.randn(20, 4))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1]


def test_factors_are_what_the_equations_say() -> None:
    m, q = torch.randn(30, 20), torch.randn(20, 4)
    p, turned, strength = power_step(m, q)
    torch.testing.assert_close(p.T @ p, torch.eye(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(turned, m.T @ p, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turned.norm(dim=0), strength, rtol=1e-4, atol=1e-5)
    out = torch.empty(30, 20)
    product(p, turned, out)
    basis = torch.linalg.qr(m @ q).Q
    torch.testing.assert_close(out, basis @ (basis.T @ m), rtol=1e-4, atol=1e-5)


def test_error_feedback_sends_everything_in_the_end() -> None:
    delta, feedback = {"w": torch.randn(24, 20), "b": torch.randn(5)}, ErrorFeedback(codec=PowerSGD(rank=2))
    state, total, gaps = feedback.init(delta), torch.zeros(24, 20), list[float]()
    for index in range(60):
        payload, state = feedback.encode(delta, state, dataclasses.replace(ROUND, index=index))
        total += feedback.decode(payload, delta)["w"]
        gaps.append(float((total / (index + 1) - delta["w"]).norm() / delta["w"].norm()))
    assert gaps[-1] < 0.15 < 0.7 < gaps[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_what_can_not_be_sent_is_refused(bad: float) -> None:
    delta = {"w": torch.full((40, 30), 3e38), "v": torch.ones(3)}
    delta["w"][3, 3] = bad
    says = "too large" if bad == 3e38 else "tensor w of the pseudo-gradient"
    with pytest.raises(PayloadError, match=says):
        PowerSGD().encode(delta, PowerSGD().init(delta), ROUND)


def test_payloads_with_other_ranks_or_wild_factors_are_refused() -> None:
    delta, codec = {"w": torch.randn(40, 30)}, PowerSGD(rank=2, bits=32)
    body = codec.encode(delta, codec.init(delta), ROUND)[0].data[wire.HEADER_BYTES :]
    for place, value, says in ((0, 16, "16 bits"), (2, 1, "rank 1"), (2, 3, "rank 3"), (3, 0x80, "rank -")):
        bad = body.clone()
        bad[place] = value
        with pytest.raises(PayloadError, match=says):
            codec.decode(wire.pack(wire.CodecId.POWER_SGD, delta, ROUND, bad), delta)
    wild = torch.cat([body[:4], torch.full((140,), 1e30).view(torch.uint8)])
    with pytest.raises(PayloadError, match="overflow"):
        codec.decode(wire.pack(wire.CodecId.POWER_SGD, delta, ROUND, wild), delta)


@pytest.mark.parametrize(
    ("codec", "field"),
    [
        (PowerSGD(rank=0), "codec.rank"), (PowerSGD(energy=0.0), "codec.energy"),
        (PowerSGD(energy=1.5), "codec.energy"),
        (PowerSGD(window=0), "codec.window"), (PowerSGD(bits=5), "codec.bits"),  # pyright: ignore[reportArgumentType]
    ],
)  # fmt: skip
def test_settings_out_of_range(codec: PowerSGD, field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} = "):
        codec.check()
