"""FedZip and the entropy coder under it: lossless, as small as it says, strict about what it takes."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowcomm_kernels.topk import Chunks

from lowcomm.codec import FedZip, TopK, wire
from lowcomm.codec.entropy import Coder, decode_symbols, encode_symbols
from lowcomm.codec.fedzip import from_gaps, k_means, to_gaps
from lowcomm.codec.flat import flatten
from lowcomm.types import ConfigError, Delta, PayloadError, Round

ROUND = Round(index=0, step=8, fragments=(0,), seed=99, island=1)
CODERS: tuple[Coder, ...] = ("ans", "huffman")


def deltas(seed: int = 0, rows: int = 71) -> Delta:
    g = torch.Generator().manual_seed(seed)
    shapes = {"a": (rows, 97), "one": (), "none": (3, 0), "b": (255,)}
    return {n: torch.randn(s, generator=g) for n, s in shapes.items()}


@pytest.mark.parametrize("coder", CODERS)
@given(symbols=st.lists(st.integers(0, 300), max_size=200), skew=st.integers(1, 50))
@settings(deadline=None, max_examples=60)
def test_symbols_round_trip(coder: Coder, symbols: list[int], skew: int) -> None:
    wanted = np.array([s // skew for s in symbols], dtype=np.int64)
    data = encode_symbols(wanted, coder)
    assert np.array_equal(decode_symbols(data, len(wanted), 301, coder), wanted)


@pytest.mark.parametrize(("coder", "over"), [("ans", 1.005), ("huffman", 1.05)])
def test_size_is_near_the_entropy(coder: Coder, over: float) -> None:
    symbols = np.random.default_rng(0).geometric(0.2, 20_000) - 1
    p = np.bincount(symbols) / len(symbols)
    bits = -(p[p > 0] * np.log2(p[p > 0])).sum() * len(symbols)
    size = 8 * (len(encode_symbols(symbols, coder)) - 2 - 4 * len(np.unique(symbols)))
    assert bits <= size + 32 <= over * bits + 100


@pytest.mark.parametrize("coder", CODERS)
@given(data=st.binary(max_size=80), count=st.integers(0, 60))
@settings(deadline=None, max_examples=150)
def test_any_bytes_give_symbols_or_our_own_error(coder: Coder, data: bytes, count: int) -> None:
    try:
        symbols = decode_symbols(data, count, 9, coder)
    except PayloadError:
        return
    assert symbols.shape == (count,)
    assert ((symbols >= 0) & (symbols < 9)).all()


def table(symbols: list[int], counts: list[int], words: list[int]) -> bytes:
    head = np.array([len(symbols) - 1, *symbols, *counts], "<u2")
    return head.tobytes() + np.array(words, "<u4").tobytes()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cut off"), (table([1, 2], [1, 1], [])[:-1], "cut off"), (table([2, 1], [1, 1], [5]), "out of order"),
        (table([1, 9], [1, 1], [5]), "out of range"), (table([1, 2], [0, 1], [5]), "empty entry"),
        (table([1], [1], [5]), "single symbol"), (table([1, 2], [1, 1], [0]), "can't be decoded"),
        (table([1, 2], [1, 1], [7, 7, 7, 7]), "more than its symbols"),
    ],
)  # fmt: skip
def test_bad_codes_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(PayloadError, match=says):
        decode_symbols(data, 5, 9, "ans")


@given(numel=st.integers(0, 700), chunk=st.integers(1, 200), seed=st.integers(0, 99), k=st.integers(1, 200))
@settings(deadline=None, max_examples=60)
def test_gaps_round_trip(numel: int, chunk: int, k: int, seed: int) -> None:
    chunks, rng = Chunks(numel, chunk, min(k, chunk)), np.random.default_rng(seed)
    parts = [
        np.sort(rng.choice(length, kept, replace=False)) for _, n, length, kept in chunks.parts() for _ in range(n)
    ]
    indices = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    gaps = to_gaps(indices, chunks)
    assert (gaps >= 0).all()
    assert np.array_equal(from_gaps(gaps, chunks), indices)
    if len(gaps):
        gaps[-1] += chunk
        with pytest.raises(PayloadError, match="leave their chunk"):
            from_gaps(gaps, chunks)


def test_k_means_finds_clusters_and_stops_at_a_fixed_point() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([c + 0.01 * rng.standard_normal(200) for c in (-2.0, -1.0, 1.0, 3.0)]).astype(np.float32)
    centroids, nearest = k_means(values, 4)
    assert np.allclose(centroids, [-2, -1, 1, 3], atol=0.01)
    assert np.array_equal(nearest, np.abs(values[:, None] - centroids).argmin(axis=1))
    for i, c in enumerate(centroids):
        assert c == pytest.approx(values[nearest == i].mean(dtype=np.float64), rel=1e-6)
    assert [len(x) for x in k_means(values[:0], 4)] == [0, 0]


@given(
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=60),
    clusters=st.integers(1, 20),
)
@settings(deadline=None, max_examples=80)
def test_k_means_takes_anything(values: list[float], clusters: int) -> None:
    x = np.array(values, dtype=np.float32)
    centroids, nearest = k_means(x, clusters)
    assert 1 <= len(centroids) <= clusters
    assert np.isfinite(centroids).all() and (np.diff(centroids) > 0).all()
    if len(np.unique(x)) <= clusters:
        assert np.array_equal(centroids[nearest], x)


@pytest.mark.parametrize("coder", CODERS)
def test_enough_clusters_and_everything_kept_is_the_identity(coder: Coder) -> None:
    delta = {n: (2 * d).round() / 2 for n, d in deltas().items()}
    codec = FedZip(chunk=100, k=100, clusters=64, coder=coder)
    payload, _ = codec.encode(delta, {}, ROUND)
    got = codec.decode(payload, delta, ROUND)
    assert all(torch.equal(got[n], d) for n, d in delta.items())


def test_it_sends_the_entries_of_top_k_at_their_centroids() -> None:
    delta, codec = deltas(), FedZip(chunk=512, k=40, clusters=6)
    sent = flatten(codec.decode(codec.encode(delta, {}, ROUND)[0], delta))
    top = TopK(chunk=512, k=40, bits=16)
    wanted = flatten(top.decode(top.encode(delta, {}, ROUND)[0], delta))
    assert torch.equal(sent != 0, wanted != 0)
    assert len(sent.unique()) == 7
    assert float((sent - wanted).norm() / wanted.norm()) < 0.2


@pytest.mark.parametrize("coder", CODERS)
def test_real_bits_are_near_the_bound(coder: Coder) -> None:
    """64 of 4096 and 4 clusters of a Gaussian: log2 C(4096, 64) / 64 = 7.36 bits per index, at most 2 per value."""
    delta = {"w": torch.randn(100, 4096, generator=torch.Generator().manual_seed(3))}
    payload, _ = FedZip(clusters=4, coder=coder).encode(delta, {}, ROUND)
    assert (7.36 + 1.5) / 64 < 8 * payload.nbytes / 409_600 < (7.36 + 2.2) / 64 + 0.02


def test_payloads_that_do_not_fit_the_settings_are_refused() -> None:
    delta, codec = deltas(), FedZip(chunk=512, k=40, clusters=6)
    body = codec.encode(delta, {}, ROUND)[0].data[wire.HEADER_BYTES :]
    for place, value, says in (
        (0, 17, "lengths"),
        (4, 7, "lengths"),
        (10, 1, "lengths"),
        (15, 0x7F, "NaN or infinite"),
    ):
        bad = body.clone()
        bad[place] = value
        if place == 15:
            bad[14] = 0x80
        with pytest.raises(PayloadError, match=says):
            codec.decode(wire.pack(wire.CodecId.FEDZIP, delta, ROUND, bad), delta)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_input_that_is_not_finite_is_named(bad: float) -> None:
    delta = deltas()
    delta["b"][200] = bad
    with pytest.raises(PayloadError, match="tensor b of the pseudo-gradient is NaN or infinite"):
        FedZip().encode(delta, {}, ROUND)


@pytest.mark.parametrize(
    ("codec", "field"),
    [
        (FedZip(k=0), "codec.k"), (FedZip(clusters=257), "codec.clusters"), (FedZip(clusters=0), "codec.clusters"),
        (FedZip(coder="zip"), "codec.coder"),  # pyright: ignore[reportArgumentType]
    ],
)  # fmt: skip
def test_settings_out_of_range(codec: FedZip, field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} = "):
        codec.check()


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "constriction":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"constriction is missing. Fix: pip install 'lowcomm\[codecs\]'"):
        FedZip().check()
