"""Dense kernels: the reference and the numba path give the same bytes, and the bytes are what the formats say."""

# Settings travel as plain dictionaries.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowcomm_kernels import dispatch
from lowcomm_kernels.bits import widen
from lowcomm_kernels.dequantise import dequantise, dequantise_accumulate
from lowcomm_kernels.errors import NonFiniteError
from lowcomm_kernels.fp8 import decode_bf16, decode_fp8, encode_bf16, encode_fp8
from lowcomm_kernels.inner_products import LANES, add_products, fold_lanes, no_lanes
from lowcomm_kernels.philox import philox4x32, random16
from lowcomm_kernels.quantise import Quantised, delta_quantise, empty_quantised, quantise
from lowcomm_kernels.reduce_quantised import reduce_quantised, reduce_to_float
from lowcomm_kernels.sign import Signs, delta_sign, sign_accumulate, sign_pack, sign_unpack
from lowcomm_kernels.sort_rows import sort_rows
from lowcomm_kernels.vote import vote, vote_apply

KINDS = ("normal", "wide", "zero", "subnormal", "huge", "one")
SIZES = st.integers(0, 1100)
BLOCKS = st.sampled_from((16, 48, 256))
FAST = settings(max_examples=60, deadline=None)


def data(numel: int, kind: str, seed: int = 0) -> torch.Tensor:
    """fp32 [numel] of one adversarial kind."""
    x = torch.randn(numel, generator=torch.Generator().manual_seed(seed + numel))
    if kind == "wide":
        return x * torch.logspace(-44, 37, max(numel, 1))[:numel]
    if kind == "zero":
        return torch.where(x > 0, 0.0, -0.0)
    if kind == "subnormal":
        return x * 1e-41
    if kind == "huge":
        return torch.where(x > 0, torch.finfo(torch.float32).max, -torch.finfo(torch.float32).max)
    if kind == "one":
        return torch.zeros(numel).index_fill_(0, torch.arange(numel // 2, min(numel, numel // 2 + 1)), 3.0)
    return x


def poison(like: torch.Tensor) -> torch.Tensor:
    """A buffer full of ones (NaN as a float), so that a byte left unwritten shows."""
    return torch.full((like.numel() * like.element_size(),), 255, dtype=torch.uint8).view(like.dtype)


def same(a: torch.Tensor | tuple[torch.Tensor, ...], b: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
    """Equal bytes."""
    if isinstance(a, torch.Tensor):
        a, b = (a,), (b,)  # pyright: ignore
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        torch.testing.assert_close(x.view(torch.uint8), y.view(torch.uint8), rtol=0, atol=0)


def filled(op, expected, *args, out: str = "out", **settings_):
    """Run `op` on the numba path into a poisoned output like `expected`."""
    buffers = poison(expected) if isinstance(expected, torch.Tensor) else type(expected)(*map(poison, expected))
    return op(*args, path="numba", **{out: buffers}, **settings_)


@given(SIZES, BLOCKS, st.sampled_from((8, 4, 2)), st.booleans(), st.sampled_from(KINDS), st.integers(0, 2**64 - 1))
@FAST
def test_quantise_and_back(numel: int, block: int, bits: int, random: bool, kind: str, seed: int) -> None:
    x = data(numel, kind)
    rounding = "stochastic" if random else "nearest"
    expected = quantise(x, bits=bits, block=block, rounding=rounding, seed=seed, offset=80, path="reference")
    settings_ = {"bits": bits, "block": block, "rounding": rounding, "seed": seed, "offset": 80}
    same(expected, filled(quantise, expected, x, **settings_))
    value = dequantise(expected, numel, bits=bits, block=block, path="reference")
    same(value, filled(dequantise, value, expected, numel, bits=bits, block=block))
    acc, other = data(numel, "normal", 1), data(numel, "normal", 1)
    dequantise_accumulate(expected, acc, 0.3, bits=bits, block=block, path="reference")
    dequantise_accumulate(expected, other, 0.3, bits=bits, block=block, path="numba")
    same(acc, other)


@given(SIZES, BLOCKS, st.sampled_from((8, 4, 2)), st.booleans(), st.sampled_from(KINDS[:4]), st.booleans())
@FAST
def test_delta_quantise(numel: int, block: int, bits: int, random: bool, kind: str, has_new: bool) -> None:
    old, new, error = data(numel, kind, 1), data(numel, kind, 2) if has_new else None, data(numel, kind, 3)
    settings_ = {"beta": 0.9, "bits": bits, "block": block, "rounding": "stochastic" if random else "nearest"}
    left = poison(error)
    expected = delta_quantise(old, new, error, error_out=left, path="reference", **settings_)
    d = (old if new is None else old - new) + 0.9 * error
    same(expected, quantise(d, path="reference", **{k: v for k, v in settings_.items() if k != "beta"}))
    same(left, d - dequantise(expected, numel, bits=bits, block=block, path="reference"))
    same(expected, filled(delta_quantise, expected, old, new, error, **settings_))
    same(left, error)


@given(st.integers(1, 900), BLOCKS, st.sampled_from((8, 4, 2)), st.sampled_from((8, 4, 2)), st.integers(1, 5))
@FAST
def test_reduce(numel: int, block: int, bits: int, out_bits: int, peers: int) -> None:
    parts = [quantise(data(numel, "normal", w), bits=bits, block=block, path="reference") for w in range(peers)]
    gap = 3  # rows of a receive buffer lie apart
    codes = torch.zeros(peers, len(parts[0].codes) + gap, dtype=torch.uint8)[:, :-gap]
    codes.copy_(torch.stack([q.codes for q in parts]))
    scales, weights = torch.stack([q.scales for q in parts]), torch.rand(peers)
    acc = torch.zeros(numel)
    for q, weight in zip(parts, weights, strict=True):
        dequantise_accumulate(q, acc, float(weight), bits=bits, block=block, path="reference")
    rows = (codes, scales, weights, numel)
    for path in ("reference", "numba"):
        same(acc, reduce_to_float(*rows, bits=bits, block=block, out=poison(acc), path=path))
        left = poison(acc)
        again = reduce_quantised(*rows, bits=bits, out_bits=out_bits, block=block, error_out=left, path=path)
        same(again, quantise(acc, bits=out_bits, block=block, path="reference"))
        same(left, acc - dequantise(again, numel, bits=out_bits, block=block, path="reference"))
    same(again, reduce_quantised(*rows, bits=bits, out_bits=out_bits, block=block, path="numba"))


@given(st.integers(1, 5), st.integers(0, 2), st.integers(0, 300), st.sampled_from(KINDS[:-2]))
@settings(max_examples=20, deadline=None)
def test_inner_products_have_the_same_bits_by_either_path_and_any_number_of_threads(
    count: int, whole: int, rest: int, kind: str
) -> None:
    rows = torch.stack([data(whole * LANES + rest, kind, seed) for seed in range(count)])
    tables: list[torch.Tensor] = []
    before = torch.get_num_threads()
    for path, threads in (("reference", 1), ("numba", 1), ("numba", 2)):
        lanes = no_lanes(count, rows.device)
        torch.set_num_threads(threads)
        try:
            for part in rows.split(LANES, dim=1):
                add_products(part.contiguous(), lanes, path=path)
        finally:
            torch.set_num_threads(before)
        tables.append(fold_lanes(lanes))
    assert torch.equal(tables[0], tables[1]) and torch.equal(tables[1], tables[2])
    assert torch.equal(tables[0], tables[0].T)
    wide = rows.double()
    scale = wide.norm(dim=1)
    # fp64 sums of some thousand terms, relative to what Cauchy-Schwarz allows
    assert bool(((tables[0] - wide @ wide.T).abs() <= 1e-12 * scale[:, None] * scale[None] + 1e-300).all())


@given(st.integers(1, 33), st.integers(0, 1200), st.sampled_from(KINDS), st.sampled_from((1, 2)))
@settings(max_examples=40, deadline=None)
def test_sorted_rows_have_the_same_bits_by_either_path(count: int, size: int, kind: str, threads: int) -> None:
    given_rows = torch.stack([data(size, kind, seed) for seed in range(count)])
    before = torch.get_num_threads()
    expected, found = given_rows.clone(), given_rows.clone()
    sort_rows(expected, path="reference")
    torch.set_num_threads(threads)
    try:
        sort_rows(found, path="numba")
    finally:
        torch.set_num_threads(before)
    same(expected, found)
    assert torch.equal(expected, given_rows.sort(dim=0).values)  # -0 and 0 are equal here


@given(SIZES, BLOCKS, st.sampled_from(KINDS))
@FAST
def test_sign(numel: int, block: int, kind: str) -> None:
    x = data(numel, kind)
    expected = sign_pack(x, block=block, path="reference")
    same(expected, filled(sign_pack, expected, x, block=block))
    value = sign_unpack(expected, numel, block=block, path="reference")
    same(value, filled(sign_unpack, value, expected, numel, block=block))
    assert torch.equal(~value.signbit(), x >= 0)
    acc, other = data(numel, "normal", 1), data(numel, "normal", 1)
    sign_accumulate(expected, acc, 0.3, block=block, path="reference")
    sign_accumulate(expected, other, 0.3, block=block, path="numba")
    same(acc, other)
    if kind == "huge":
        return
    error, new = data(numel, kind, 1), data(numel, kind, 2)
    left = poison(error)
    fused = delta_sign(x, new, error, beta=0.5, block=block, error_out=left, path="reference")
    same(fused, sign_pack((x - new) + 0.5 * error, block=block, path="reference"))
    same(fused, filled(delta_sign, fused, x, new, error, beta=0.5, block=block))
    same(left, error)


def test_sign_scale_is_the_mean_magnitude() -> None:
    x = data(1000, "normal")
    scales = sign_pack(x).scales.view(torch.bfloat16).float()
    means = torch.stack([part.abs().double().mean() for part in x.split(256)]).float()
    torch.testing.assert_close(scales, means, rtol=2**-8, atol=0)


@given(st.sampled_from((1, 2, 3, 4, 7, 8, 16, 255)), st.integers(1, 1200), st.data())
@settings(max_examples=30, deadline=None)
def test_vote(peers: int, size: int, draw: st.DataObject) -> None:
    tie = draw.draw(st.integers(0, peers - 1))
    generator = torch.Generator().manual_seed(peers * size)
    words = torch.randint(0, 256, (peers, size + 5), generator=generator, dtype=torch.uint8)[:, :size]
    bits = (words[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    ones, tied = bits.sum(0), bits[tie].bool()
    majority = (2 * ones > peers) | ((2 * ones == peers) & tied)
    packed = (majority.int() << torch.arange(8)).sum(1).to(torch.uint8)
    for path in ("reference", "numba"):
        same(packed, vote(words, tie_peer=tie, out=poison(packed), path=path))
        target = torch.zeros(8 * size - 5)
        vote_apply(words, target, 0.25, tie_peer=tie, path=path)
        assert torch.equal(target, torch.where(majority.reshape(-1)[:-5], 0.25, -0.25))


@given(SIZES, BLOCKS, st.sampled_from(KINDS))
@FAST
def test_fp8_and_bf16(numel: int, block: int, kind: str) -> None:
    x = data(numel, kind)
    expected = encode_fp8(x, block=block, path="reference")
    same(expected, filled(encode_fp8, expected, x, block=block))
    scale = widen(expected.scales).repeat_interleave(block)[:numel]
    theirs = expected.codes.view(torch.float8_e4m3fn).float() * scale
    for path in ("reference", "numba"):
        same(theirs, decode_fp8(expected, block=block, out=poison(theirs), path=path))
    y = torch.where(scale == 0, 0.0, x * torch.where(scale == 0, 0.0, torch.ones_like(scale) / scale))
    assert torch.equal(y.copysign(x).to(torch.float8_e4m3fn).view(torch.uint8), expected.codes)
    half = x.clamp(-3.3895e38, 3.3895e38).bfloat16()
    for path in ("reference", "numba"):
        bits = encode_bf16(x, out=poison(half.view(torch.int16)), path=path)
        same(half, bits.view(torch.bfloat16))
        same(half.float(), decode_bf16(bits, out=poison(x), path=path))


def test_fp8_decodes_every_code() -> None:
    codes = torch.arange(256).to(torch.uint8)
    ones = torch.full((1,), 0x3F80, dtype=torch.int16)
    for path in ("reference", "numba"):
        value = decode_fp8(Quantised(codes, ones), path=path)
        torch.testing.assert_close(value, codes.view(torch.float8_e4m3fn).float(), rtol=0, atol=0, equal_nan=True)


@given(SIZES, st.sampled_from((8, 4)), st.sampled_from(KINDS))
@FAST
def test_nearest_is_within_half_a_level(numel: int, bits: int, kind: str) -> None:
    x = data(numel, kind)
    q = quantise(x, bits=bits, block=16)
    scale = widen(q.scales).double().repeat_interleave(16)[:numel]
    off = (x.double() - dequantise(q, numel, bits=bits, block=16).double()).abs()
    # Half a level; the cap near the largest float adds under 0.01 level; under 2**-100 all is dropped.
    assert bool((off <= scale * 0.5101 + 2.0**-100).all())


def test_two_bits_lose_what_four_levels_must() -> None:
    x = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
    off = x - dequantise(quantise(x, bits=2), len(x), bits=2)
    assert 0.11 < float(off.square().mean()) < 0.125  # the best uniform four-level quantiser: 0.1188


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_stochastic_is_unbiased(bits: int) -> None:
    x = data(64, "normal")
    total = torch.zeros(64)
    for seed in range(1000):
        q = quantise(x, bits=bits, block=64, rounding="stochastic", seed=seed)
        dequantise_accumulate(q, total, 1e-3, bits=bits, block=64)
    level = float(widen(q.scales)) * (2 if bits == 2 else 1)
    # One draw is off by at most half a level in standard deviation, 1000 by 0.016; five of those.
    assert float((total - x).abs().max()) < 0.08 * level
    assert float((total - x).abs().max()) > 0


def test_parts_at_block_bounds_have_the_bytes_of_the_whole() -> None:
    x = data(1000, "normal")
    whole = quantise(x, bits=4, rounding="stochastic", seed=9, offset=8)
    parts = [
        quantise(x[s], bits=4, rounding="stochastic", seed=9, offset=8 + s.start)
        for s in (slice(0, 512), slice(512, 1000))
    ]
    same(whole, tuple(torch.cat(pair) for pair in zip(*parts, strict=True)))


def test_philox_known_answers() -> None:
    # From the authors' own test vectors: counter 0 and key 0.
    words = philox4x32(torch.zeros(1, dtype=torch.int64), 0)
    assert [int(w) for w in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert torch.equal(random16(8, 16, 7), random16(0, 24, 7)[8:])


def test_bytes_on_the_wire() -> None:
    sizes = {bits: sum(t.numel() * t.element_size() for t in empty_quantised(1 << 16, bits=bits)) for bits in (8, 4, 2)}
    assert sizes[8] <= 1.01 * 65536 and sizes[4] <= 0.51 * 65536 and sizes[2] <= 0.26 * 65536
    assert sum(t.numel() * t.element_size() for t in sign_pack(torch.ones(1 << 16))) <= 0.135 * 65536


@pytest.mark.parametrize("path", ["reference", "numba"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_input_names_the_first_element(path: dispatch.Path, bad: float) -> None:
    x, zero = data(700, "normal"), torch.zeros(700)
    x[[403, 650]] = bad
    calls = [
        lambda: quantise(x, bits=8, path=path),
        lambda: quantise(x, bits=2, rounding="stochastic", path=path),
        lambda: delta_quantise(x, None, zero.clone(), beta=1.0, bits=4, path=path),
        lambda: sign_pack(x, path=path),
        lambda: delta_sign(zero, x, zero.clone(), beta=1.0, path=path),
        lambda: encode_fp8(x, path=path),
        lambda: encode_bf16(x, path=path),
    ]
    for call in calls:
        with pytest.raises(NonFiniteError, match="element 403 is") as caught:
            call()
        assert caught.value.index == 403


def test_a_second_buffer_keeps_the_error_of_a_failed_call() -> None:
    x, error = data(600, "normal"), data(600, "normal", 1)
    kept = error.clone()
    x[599] = float("nan")
    with pytest.raises(NonFiniteError):
        delta_quantise(x, None, error, beta=1.0, bits=8, error_out=torch.empty(600))
    same(kept, error)


@pytest.mark.parametrize("scale", [0x7F80, 0x7FC0, -0x7FFF])
@pytest.mark.parametrize("path", ["reference", "numba"])
def test_bad_scales_are_refused_before_anything_changes(path: dispatch.Path, scale: int) -> None:
    q = quantise(data(600, "normal"), bits=8)
    q.scales[1] = scale
    acc = torch.zeros(600)
    with pytest.raises(NonFiniteError, match="element 256 is"):
        dequantise_accumulate(q, acc, 1.0, bits=8, path=path)
    with pytest.raises(NonFiniteError, match="element 256 is"):
        reduce_to_float(q.codes[None], q.scales[None], torch.ones(1), 600, bits=8, path=path)
    assert not acc.any()


def test_bad_arguments_are_refused() -> None:
    x, word = torch.zeros(32), torch.zeros(2, 4, dtype=torch.uint8)
    calls = [
        (lambda: quantise(x, bits=3), "bits=3"),
        (lambda: quantise(x, bits=8, block=24), "block=24"),
        (lambda: quantise(x, bits=8, block=8192), "block=8192"),
        (lambda: quantise(x, bits=8, offset=4), "offset=4"),
        (lambda: quantise(x, bits=8, seed=1 << 64), "seed="),
        (lambda: quantise(x.double(), bits=8), "x.dtype"),
        (lambda: quantise(x[::2], bits=8), "x: expected a contiguous"),
        (lambda: quantise(x, bits=8, rounding="down"), "rounding="),  # pyright: ignore
        (lambda: quantise(x, bits=8, out=empty_quantised(31, bits=8)), "out.codes.numel"),
        (lambda: quantise(x, bits=8, path="cuda"), "path="),  # pyright: ignore
        (lambda: delta_quantise(x, x[:5], x, beta=1.0, bits=8), "new.numel"),
        (lambda: dequantise(empty_quantised(31, bits=8), 32, bits=8), "codes.numel"),
        (lambda: sign_unpack(Signs(word[0], torch.zeros(1, dtype=torch.int16)), 40), "words.numel"),
        (lambda: vote(word, tie_peer=2), "tie_peer=2"),
        (lambda: vote(word.expand(256, 2, 4)[:, 0]), "expected elements of a row|expected 1 to 255"),
        (lambda: sort_rows(x[None].double()), "rows: expected"),
        (lambda: sort_rows(torch.zeros(2, 8)[:, :4]), "rows: expected dense"),
        (lambda: add_products(x[None].double(), no_lanes(1, x.device)), "rows: expected"),
        (lambda: add_products(x[None], no_lanes(2, x.device)), "lanes: expected"),
        (lambda: reduce_to_float(word, word.to(torch.int16), torch.ones(3), 4, bits=8), "codes.shape"),
    ]
    for call, text in calls:
        with pytest.raises(ValueError, match=text):
            call()


def test_without_numba_the_reference_runs_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_has", lambda module: False)
    dispatch._warn_no_numba.cache_clear()
    with pytest.warns(RuntimeWarning, match="numba is missing"):
        assert dispatch.choose_path(torch.device("cpu")) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.choose_path(torch.device("cpu")) == "reference"
    with pytest.raises(RuntimeError, match="triton is missing"):
        dispatch.choose_path(torch.device("cuda"))


def test_importing_an_op_imports_neither_numba_nor_triton() -> None:
    code = (
        "import sys, lowcomm_kernels.quantise, lowcomm_kernels.dequantise, lowcomm_kernels.reduce_quantised\n"
        "import lowcomm_kernels.sign, lowcomm_kernels.vote, lowcomm_kernels.fp8\n"
        "import lowcomm_kernels.inner_products, lowcomm_kernels.sort_rows\n"
        "print([m for m in ('numba', 'triton') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(dispatch.__file__).parents[1])}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"
