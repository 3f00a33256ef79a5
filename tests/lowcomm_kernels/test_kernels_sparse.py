"""Sparse kernels on the CPU: numba against the eager reference, bit for bit, and the properties of each format."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowcomm_kernels import dispatch
from lowcomm_kernels.elias_fano import chunk_bytes, decode_indices, encode_indices, packed_bytes
from lowcomm_kernels.errors import NonFiniteError
from lowcomm_kernels.randomk import gather, random_indices, window_indices
from lowcomm_kernels.sparse_decode import sparse_decode
from lowcomm_kernels.topk import Chunks, Coded, Kept, Sparse, decode_values, delta_topk, encode_values, threshold, topk
from torch import Tensor

SHAPES = [
    Chunks(0),
    Chunks(1),
    Chunks(5),
    Chunks(4096 * 3 + 77),
    Chunks(4096 * 2 + 4000, 4096, 37),
    Chunks(1003, 100, 33),
    Chunks(1000, 100, 100),
    Chunks(17, 16, 1),
    Chunks(70000, 65536, 40000),
]
KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "ties": lambda x: (x * 2).round(),
    "zero": lambda x: x * 0,
    "one value": lambda x: torch.full_like(x, -0.3),
    "subnormal": lambda x: x * 1e-41,
    "near the cut of tiny scales": lambda x: x * 2.0**-100,
    "huge": lambda x: torch.where(x.abs() > 1, x.sign() * 3.4028e38, x * 1e38),
    "outliers": lambda x: x.pow(9),
    "mostly zero": lambda x: x * (x > 2.5),
}


def data(numel: int, kind: str = "normal", seed: int = 0) -> Tensor:
    return KINDS[kind](torch.randn(numel, generator=torch.Generator().manual_seed(seed)))


def poison(tensor: Tensor) -> Tensor:
    """The same shape, filled with NaN or 0xFF..., so that an element that is not written shows."""
    if tensor.dtype.is_floating_point:
        return torch.full_like(tensor, float("nan"))
    empty = torch.empty_like(tensor)
    empty.view(torch.uint8).fill_(0xFF)
    return empty


def stacked(peers: list[Sparse]) -> tuple[Tensor, Tensor, Tensor]:
    """What `sparse_decode` takes: the peers' indices, codes and scales, peers first."""
    return (
        torch.stack([p.indices for p in peers]),
        torch.stack([p.codes for p in peers]),
        torch.stack([p.scales for p in peers]),
    )


def same(a: object, b: object) -> None:
    """Equal bytes of two tensors, or of all fields of two results."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert not a.numel() or torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        return
    assert type(a) is type(b)
    for key, value in vars(a).items():
        same(value, vars(b)[key])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunks", SHAPES, ids=str)
def test_topk_same_bytes(chunks: Chunks, kind: str) -> None:
    x = data(chunks.numel, kind)
    expected = topk(x, chunks, path="reference")
    out = Kept(poison(expected.indices), poison(expected.values))
    same(expected, topk(x, chunks, path="numba", out=out))


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.integers(-5, 5), min_size=1, max_size=300), chunk=st.integers(1, 70), share=st.floats(0.01, 1)
)
def test_topk_is_the_sorted_definition(values: list[int], chunk: int, share: float) -> None:
    chunks = Chunks(len(values), chunk, max(1, int(share * chunk)))
    expected = []
    for at in range(0, len(values), chunk):
        part = values[at : at + chunk]
        k = chunks.k if len(part) == chunk else chunks.tail_k
        order = sorted(range(len(part)), key=lambda i: (-abs(part[i]), i))
        expected.extend(sorted(order[:k]))
    for path in ("reference", "numba"):
        found = topk(torch.tensor(values, dtype=torch.float32), chunks, path=path)
        assert found.indices.tolist() == expected


@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunks", [SHAPES[i] for i in (0, 1, 3, 5, 6, 8)], ids=str)
def test_values_same_bytes(chunks: Chunks, kind: str, bits: int) -> None:
    values = data(chunks.kept, kind)
    expected = encode_values(values, chunks, bits=bits, path="reference")
    out = Coded(poison(expected.codes), poison(expected.scales))
    same(expected, encode_values(values, chunks, bits=bits, path="numba", out=out))
    decoded = decode_values(expected, chunks, bits=bits, path="reference")
    same(decoded, decode_values(expected, chunks, bits=bits, path="numba", out=poison(decoded)))
    assert bool(torch.isfinite(decoded).all())


@pytest.mark.parametrize(("bits", "bound"), [(2, 0.0042), (8, 2e-5), (16, 4e-6)])
def test_values_error_on_gaussian_entries(bits: int, bound: float) -> None:
    chunks = Chunks(4096 * 50)
    values = topk(data(chunks.numel), chunks).values
    decoded = decode_values(encode_values(values, chunks, bits=bits), chunks, bits=bits)
    assert float((decoded - values).pow(2).sum() / values.pow(2).sum()) < bound


def test_two_bits_keep_zeros_and_signs() -> None:
    chunks = Chunks(4096)
    values = torch.zeros(64)
    values[3], values[9] = -1.5, 1.5
    decoded = decode_values(encode_values(values, chunks), chunks)
    assert decoded[3] == -1.5 and decoded[9] == 1.5 and int((decoded != 0).sum()) == 2


def test_bits_on_the_wire() -> None:
    chunks = Chunks(30_000_000)
    sent = packed_bytes(chunks) + chunks.code_bytes(2) + 2 * chunks.scale_count(2)
    assert chunk_bytes(4096, 64) == 64
    assert 8 * sent / chunks.numel < 0.1603


@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunks", [SHAPES[i] for i in (0, 2, 3, 5)], ids=str)
def test_delta_topk_same_bytes(chunks: Chunks, kind: str, bits: int) -> None:
    old, new, error = (0.3 * data(chunks.numel, kind, seed) for seed in range(3))
    for second in (new, None):
        first, other = error.clone(), error.clone()
        expected = delta_topk(old, second, first, chunks, beta=0.9, bits=bits, path="reference")
        out = Sparse(poison(expected.indices), poison(expected.codes), poison(expected.scales))
        same(expected, delta_topk(old, second, other, chunks, beta=0.9, bits=bits, path="numba", out=out))
        same(first, other)


def test_delta_topk_loses_nothing() -> None:
    """What is sent and what is left add up to the difference: exact where one operand is a rounding of the other."""
    chunks = Chunks(4096 * 2 + 50)
    old, new, error = data(chunks.numel), data(chunks.numel, seed=1), data(chunks.numel, seed=2)
    difference = (old - new) + 0.5 * error
    sparse = delta_topk(old, new, error, chunks, beta=0.5)
    payload = (sparse.indices[None], sparse.codes[None], sparse.scales[None])
    sent = sparse_decode(*payload, torch.ones(1), chunks)
    assert int((sent != 0).sum()) == chunks.kept
    torch.testing.assert_close(sent + error, difference, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("path", ["reference", "numba"])
def test_nonfinite_is_named(bad: float, path: dispatch.Path) -> None:
    chunks = Chunks(9000)
    x = data(9000)
    x[8500] = bad
    x[8600] = bad
    calls = [
        lambda: topk(x, chunks, path=path),
        lambda: delta_topk(x, None, torch.zeros(9000), chunks, path=path),
        lambda: threshold(x, 1.0, path=path),
        lambda: encode_values(x, Chunks(9000, 100, 100), path=path),
    ]
    for call in calls:
        with pytest.raises(NonFiniteError) as caught:
            call()
        assert caught.value.index == 8500


@pytest.mark.parametrize("path", ["reference", "numba"])
@pytest.mark.parametrize(
    ("bits", "field", "value"), [(2, "scales", 0xFF00), (8, "scales", 0x7C02), (16, "codes", 0xFF)]
)
def test_malformed_values_are_refused(bits: int, field: str, value: int, path: dispatch.Path) -> None:
    chunks = Chunks(9000)
    kept = topk(data(9000), chunks)
    coded = encode_values(kept.values, chunks, bits=bits)
    getattr(coded, field)[-1:] = value
    if bits == 16:
        coded.codes[-2] = 0x80
    with pytest.raises(ValueError, match="infinite or NaN"):
        decode_values(coded, chunks, bits=bits, path=path)
    payload = (kept.indices[None], coded.codes[None], coded.scales[None])
    with pytest.raises(ValueError, match="drop that peer"):
        sparse_decode(*payload, torch.ones(1), chunks, bits=bits, path=path)


@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("chunks", [SHAPES[i] for i in (0, 2, 3, 5)], ids=str)
def test_sparse_decode_same_bytes_and_is_the_mean(chunks: Chunks, bits: int) -> None:
    peers = [
        delta_topk(data(chunks.numel, seed=w), None, torch.zeros(chunks.numel), chunks, bits=bits) for w in range(3)
    ]
    payload = stacked(peers)
    weights = torch.tensor([0.2, 0.5, 0.3])
    expected = sparse_decode(*payload, weights, chunks, bits=bits, path="reference")
    same(expected, sparse_decode(*payload, weights, chunks, bits=bits, path="numba", out=poison(expected)))
    alone = [
        sparse_decode(p.indices[None], p.codes[None], p.scales[None], torch.ones(1), chunks, bits=bits) for p in peers
    ]
    total = torch.zeros(chunks.numel)
    for weight, dense in zip(weights, alone, strict=True):
        total = total + weight * dense
    assert torch.equal(total, expected)


@pytest.mark.parametrize("path", ["reference", "numba"])
def test_sparse_decode_refuses_an_index_outside(path: dispatch.Path) -> None:
    chunks = Chunks(4096 + 100)
    sparse = delta_topk(data(chunks.numel), None, torch.zeros(chunks.numel), chunks)
    sparse.indices[-1] = 100
    with pytest.raises(ValueError, match="leaves its chunk"):
        sparse_decode(sparse.indices[None], sparse.codes[None], sparse.scales[None], torch.ones(1), chunks, path=path)


@st.composite
def index_sets(draw: st.DrawFn) -> tuple[Chunks, list[int]]:
    chunk = draw(st.integers(1, 400))
    k = draw(st.integers(1, chunk))
    chunks = Chunks(draw(st.integers(1, 3 * chunk)), chunk, k)
    indices: list[int] = []
    for _, count, n, kept in chunks.parts():
        for _ in range(count):
            indices.extend(sorted(draw(st.permutations(range(n)))[:kept]))
    return chunks, indices


@settings(max_examples=40, deadline=None)
@given(index_sets(), st.data())
def test_elias_fano_round_trip_and_mutations(case: tuple[Chunks, list[int]], more: st.DataObject) -> None:
    chunks, indices = case
    tensor = torch.tensor(indices).to(torch.uint16)
    packed = encode_indices(tensor, chunks, path="reference")
    same(packed, encode_indices(tensor, chunks, path="numba", out=poison(packed)))
    for path in ("reference", "numba"):
        same(decode_indices(packed, chunks, path=path, out=poison(tensor)), tensor)
    packed[more.draw(st.integers(0, packed.numel() - 1))] ^= more.draw(st.integers(1, 255))
    results = []
    for path in ("reference", "numba"):
        try:
            results.append(decode_indices(packed, chunks, path=path).tolist())
        except ValueError as error:
            results.append(str(error))
    assert results[0] == results[1]
    if isinstance(results[0], list):  # another legal set: it must encode to exactly these bytes
        same(encode_indices(torch.tensor(results[0]).to(torch.uint16), chunks), packed)


@pytest.mark.parametrize("path", ["reference", "numba"])
@pytest.mark.parametrize("wrong", [[3, 2, 9], [3, 3, 9], [3, 5, 100]])
def test_elias_fano_refuses_bad_indices(wrong: list[int], path: dispatch.Path) -> None:
    good = [0, 50, 99]
    with pytest.raises(ValueError, match="chunk 1"):
        encode_indices(torch.tensor(good + wrong).to(torch.uint16), Chunks(200, 100, 3), path=path)


@pytest.mark.parametrize("path", ["reference", "numba"])
@pytest.mark.parametrize("fill", [0x00, 0xFF])
def test_elias_fano_refuses_wrong_bit_counts(fill: int, path: dispatch.Path) -> None:
    chunks = Chunks(4096 * 2)
    packed = encode_indices(topk(data(chunks.numel), chunks).indices, chunks)
    packed[64 + 48 :] = fill
    with pytest.raises(ValueError, match="chunk 1"):
        decode_indices(packed, chunks, path=path)


@pytest.mark.parametrize("chunks", SHAPES, ids=str)
def test_shared_indices_same_bytes_and_legal(chunks: Chunks) -> None:
    for seed in (0, 1, 2**64 - 1):
        random = random_indices(chunks, seed=seed, path="reference")
        same(random, random_indices(chunks, seed=seed, path="numba", out=poison(random)))
        window = window_indices(chunks, turn=seed % 2**40, path="reference")
        same(window, window_indices(chunks, turn=seed % 2**40, path="numba", out=poison(window)))
        for found in (random, window):  # the coder refuses what does not ascend or leaves the chunk
            same(decode_indices(encode_indices(found, chunks), chunks), found)
    x = data(chunks.numel)
    values = gather(x, random, chunks, path="reference")
    same(values, gather(x, random, chunks, path="numba", out=poison(values)))


def test_random_indices_are_fair() -> None:
    chunks = Chunks(100 * 20_000, 100, 7)  # 7 does not divide 100: strata differ in width
    counts = torch.bincount(random_indices(chunks, seed=5).to(torch.int64), minlength=100)
    spread = (20_000 * 0.07 * 0.93) ** 0.5
    assert float((counts - 1400).abs().max()) < 4.5 * spread
    assert not torch.equal(random_indices(chunks, seed=6), random_indices(chunks, seed=5))


@given(chunk=st.integers(1, 50), share=st.floats(0.01, 1), start=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_window_covers_everything(chunk: int, share: float, start: int) -> None:
    k = max(1, int(share * chunk))
    chunks = Chunks(chunk, chunk, k)
    turns = -(-chunk // k)
    shared = torch.cat([window_indices(chunks, turn=start + t) for t in range(turns)]).tolist()
    assert set(shared) == set(range(chunk))


def test_gather_refuses_an_index_outside() -> None:
    chunks = Chunks(150, 100, 10)
    indices = random_indices(chunks, seed=1)
    indices[-1] = 50
    for path in ("reference", "numba"):
        with pytest.raises(ValueError, match="outside"):
            gather(data(150), indices, chunks, path=path)


@pytest.mark.parametrize("bound", [0.0, 0.5, 2.0, 100.0])
@pytest.mark.parametrize("numel", [0, 1, 100, 1003])
def test_threshold_same_and_by_definition(numel: int, bound: float) -> None:
    x = data(numel)
    found = threshold(x, bound, chunk=100, path="numba")
    same(threshold(x, bound, chunk=100, path="reference"), found)
    assert torch.equal(found.values, x[x.abs() >= bound])
    assert int(found.counts.sum()) == found.values.numel()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Chunks(-1), "numel=-1"),
        (lambda: Chunks(10, 65537, 1), "chunk=65537"),
        (lambda: Chunks(10, 10, 11), "k=11"),
        (lambda: topk(torch.zeros(3), Chunks(4)), "x.numel=3"),
        (lambda: topk(torch.zeros(4, dtype=torch.float64), Chunks(4)), "float64"),
        (lambda: topk(torch.zeros(4), Chunks(4), path="triton"), "TRITON_INTERPRET"),
        (lambda: encode_values(torch.zeros(1), Chunks(4), bits=4), "bits=4"),
        (lambda: threshold(torch.zeros(4), -1.0), "bound=-1.0"),
        (lambda: random_indices(Chunks(4), seed=2**64), "seed="),
        (lambda: window_indices(Chunks(4), turn=-1), "turn=-1"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()


def test_without_numba_the_reference_runs_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_has", lambda module: False)
    dispatch._warn_no_numba.cache_clear()
    with pytest.warns(RuntimeWarning, match="numba is missing"):
        found = topk(data(100), Chunks(100))
    with warnings.catch_warnings():  # once is enough
        warnings.simplefilter("error")
        same(found, topk(data(100), Chunks(100)))


def test_importing_loads_neither_numba_nor_triton() -> None:
    code = (
        "import sys; sys.path.insert(0, 'kernels')\n"
        "import lowcomm_kernels.topk, lowcomm_kernels.elias_fano, lowcomm_kernels.sparse_decode\n"
        "import lowcomm_kernels.randomk, lowcomm_kernels.dct\n"
        "assert not {'numba', 'triton'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "call",
    [
        "from lowcomm_kernels.topk import Chunks, topk; topk(x, Chunks(100))",
        "from lowcomm_kernels.quantise import quantise; quantise(x, bits=4)",
        "from lowcomm_kernels.sign import sign_pack; sign_pack(x)",
        "from lowcomm_kernels.fp8 import encode_bf16; encode_bf16(x)",
    ],
)
def test_torch_keeps_its_thread_count(call: str) -> None:
    """Numba's pool would set it to all cores, and with it the last bits of torch's sums, when it starts."""
    code = (
        "import sys; sys.path.insert(0, 'kernels')\n"
        "import torch, numba; torch.set_num_threads(1)\n"
        "x = torch.randn(100)\n"
        f"for _ in range(2):\n    {call}\n"
        "print(torch.get_num_threads(), numba.get_num_threads())"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout.split() == ["1", "1"]
