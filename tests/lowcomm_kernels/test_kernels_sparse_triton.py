"""Sparse Triton kernels through Triton's interpreter, against the eager reference, bit for bit (the DCT: a tolerance).

The interpreter is chosen when triton is imported, so one child process runs every check and the tests read its report.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ["topk", "values", "delta", "decode", "elias_fano", "elias_fano_malformed", "shared", "dct", "nonfinite"]


@pytest.fixture(scope="module")
def report() -> dict[str, str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT / 'kernels'}:{ROOT / 'tests'}"}
    child = subprocess.run(
        [sys.executable, str(Path(__file__))], env=environment, capture_output=True, text=True, timeout=200
    )
    assert child.returncode == 0, child.stderr[-2000:]
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_interpreted(report: dict[str, str], check: str) -> None:
    assert report[check] == "same"


def main() -> None:
    """The child: each check's name and "same" or what differed."""
    import traceback

    checks: list[Callable[[], None]] = [
        check_topk,
        check_values,
        check_delta,
        check_decode,
        check_elias_fano,
        check_elias_fano_malformed,
        check_shared,
        check_dct,
        check_nonfinite,
    ]
    found = {}
    for check in checks:
        try:
            check()
            found[check.__name__.removeprefix("check_")] = "same"
        except Exception:
            found[check.__name__.removeprefix("check_")] = traceback.format_exc()[-1500:]
    print(json.dumps(found))


def _shapes() -> list:
    from lowcomm_kernels.topk import Chunks

    return [Chunks(4096 + 77), Chunks(5), Chunks(303, 100, 33), Chunks(17, 16, 1), Chunks(0)]


def check_topk() -> None:
    from lowcomm_kernels.topk import Kept, topk
    from test_kernels_sparse import data, poison, same

    for chunks in _shapes():
        for kind in ("normal", "ties", "zero", "subnormal", "huge"):
            x = data(chunks.numel, kind)
            expected = topk(x, chunks, path="reference")
            out = Kept(poison(expected.indices), poison(expected.values))
            same(expected, topk(x, chunks, path="triton", out=out))


def check_values() -> None:
    from lowcomm_kernels.topk import Chunks, Coded, decode_values, encode_values
    from test_kernels_sparse import KINDS, data, poison, same

    for chunks in (*_shapes()[1:3], Chunks(200)):
        for kind in KINDS:
            for bits in (2, 8, 16):
                values = data(chunks.kept, kind)
                expected = encode_values(values, chunks, bits=bits, path="reference")
                out = Coded(poison(expected.codes), poison(expected.scales))
                same(expected, encode_values(values, chunks, bits=bits, path="triton", out=out))
                decoded = decode_values(expected, chunks, bits=bits, path="reference")
                same(decoded, decode_values(expected, chunks, bits=bits, path="triton", out=poison(decoded)))


def check_delta() -> None:
    from lowcomm_kernels.topk import Sparse, delta_topk
    from test_kernels_sparse import data, poison, same

    for chunks in _shapes():
        for kind, bits in (("normal", 2), ("normal", 8), ("normal", 16), ("outliers", 2)):
            old, new, error = (data(chunks.numel, kind, seed) for seed in range(3))
            for second in (new, None):
                first, other = error.clone(), error.clone()
                expected = delta_topk(old, second, first, chunks, beta=0.9, bits=bits, path="reference")
                out = Sparse(poison(expected.indices), poison(expected.codes), poison(expected.scales))
                same(expected, delta_topk(old, second, other, chunks, beta=0.9, bits=bits, path="triton", out=out))
                same(first, other)


def check_decode() -> None:
    import torch
    from lowcomm_kernels.sparse_decode import sparse_decode
    from lowcomm_kernels.topk import delta_topk
    from test_kernels_sparse import data, poison, same, stacked

    weights = torch.tensor([0.2, 0.5, 0.3])
    for chunks in _shapes():
        for bits in (2, 8, 16):
            zero = torch.zeros(chunks.numel)
            peers = [data(chunks.numel, seed=w) for w in range(3)]
            payload = stacked([delta_topk(p, None, zero, chunks, bits=bits, path="reference") for p in peers])
            expected = sparse_decode(*payload, weights, chunks, bits=bits, path="reference")
            same(expected, sparse_decode(*payload, weights, chunks, bits=bits, path="triton", out=poison(expected)))


def check_elias_fano() -> None:
    from lowcomm_kernels.elias_fano import decode_indices, encode_indices
    from lowcomm_kernels.topk import Chunks, topk
    from test_kernels_sparse import data, poison, same

    for chunks in [*_shapes(), Chunks(4096, 4096, 1000), Chunks(9, 9, 9)]:
        indices = topk(data(chunks.numel), chunks, path="reference").indices
        packed = encode_indices(indices, chunks, path="reference")
        same(packed, encode_indices(indices, chunks, path="triton", out=poison(packed)))
        same(indices, decode_indices(packed, chunks, path="triton", out=poison(indices)))


def check_elias_fano_malformed() -> None:
    import torch
    from lowcomm_kernels.elias_fano import decode_indices, encode_indices
    from lowcomm_kernels.topk import Chunks, topk
    from test_kernels_sparse import data

    generator = torch.Generator().manual_seed(3)
    refused = 0
    for chunks in (Chunks(4096 + 77), Chunks(5), Chunks(303, 100, 33)):
        packed = encode_indices(topk(data(chunks.numel), chunks, path="reference").indices, chunks, path="reference")
        for _ in range(15):
            bad = packed.clone()
            at, bit = (int(torch.randint(top, (1,), generator=generator)) for top in (bad.numel(), 8))
            bad[at] ^= 1 << bit
            results = []
            for path in ("reference", "triton"):
                try:
                    results.append(decode_indices(bad, chunks, path=path).tolist())
                except ValueError as error:
                    results.append(str(error))
            assert results[0] == results[1]
            refused += isinstance(results[0], str)
    assert 15 < refused < 45


def check_shared() -> None:
    from lowcomm_kernels.randomk import random_indices, window_indices
    from test_kernels_sparse import poison, same

    for chunks in _shapes():
        for seed in (0, 12345, 2**64 - 1):
            expected = random_indices(chunks, seed=seed, path="reference")
            same(expected, random_indices(chunks, seed=seed, path="triton", out=poison(expected)))
            expected = window_indices(chunks, turn=seed % 2**40, path="reference")
            same(expected, window_indices(chunks, turn=seed % 2**40, path="triton", out=poison(expected)))


def check_dct() -> None:
    import torch
    from lowcomm_kernels.dct import dct, dct_topk, idct
    from test_kernels_sparse import poison

    for shape in ((0,), (63,), (4100,), (0, 5), (1, 1), (130, 70)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        expected = dct(x, path="reference")
        bound = 2e-6 * float(x.norm())
        torch.testing.assert_close(dct(x, path="triton", out=poison(expected)), expected, rtol=0, atol=bound)
        torch.testing.assert_close(idct(expected, shape, path="triton"), x, rtol=0, atol=bound)
        if x.dim() == 2:
            a, b = dct_topk(x, k=20, path="reference"), dct_topk(x, k=20, path="triton")
            assert torch.equal(a.indices.long(), b.indices.long())
            torch.testing.assert_close(a.values, b.values, rtol=0, atol=bound)


def check_nonfinite() -> None:
    import torch
    from lowcomm_kernels.dct import dct
    from lowcomm_kernels.errors import NonFiniteError
    from lowcomm_kernels.topk import Chunks, delta_topk, encode_values, topk

    chunks = Chunks(4096 + 300)
    calls: list[Callable[[torch.Tensor], object]] = [
        lambda x: topk(x, chunks, path="triton"),
        lambda x: delta_topk(x, None, torch.zeros(chunks.numel), chunks, path="triton"),
        lambda x: encode_values(x, Chunks(chunks.numel, 100, 100), path="triton"),
        lambda x: dct(x, path="triton"),
    ]
    for bad in (float("nan"), -float("inf")):
        x = torch.ones(chunks.numel)
        x[4200] = bad
        for call in calls:
            try:
                call(x)
            except NonFiniteError as error:
                assert error.index == 4200
            else:
                raise AssertionError("not refused")


if __name__ == "__main__":
    main()
