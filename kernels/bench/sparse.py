"""Speed of the sparse and transform kernels as a share of the machine's own copy, interleaved in one run.

    python kernels/bench/sparse.py [--elements 67108864] [--threads 2] [--repeats 7] [--device cpu]

Prints one JSON row for each op and path, as `timing.py` says. Eager torch runs on at most 8M elements.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from lowcomm_kernels.dct import dct, dct_topk, idct
from lowcomm_kernels.dispatch import Path as KernelPath
from lowcomm_kernels.elias_fano import decode_indices, encode_indices, packed_bytes
from lowcomm_kernels.randomk import random_indices
from lowcomm_kernels.sparse_decode import sparse_decode
from lowcomm_kernels.topk import Chunks, decode_values, delta_topk, encode_values, threshold, topk
from timing import PEERS, Op, Rows, both_paths, main


def operations(x: torch.Tensor, path: KernelPath) -> Iterator[Op]:
    """The ops on `x` (fp32 [N]), with preallocated outputs; chunk 4096, k 64, 2 bits, 4 peers."""
    n = x.numel()
    chunks = Chunks(n)
    kept = topk(x, chunks, path=path)
    yield Op("topk 64/4096", lambda: topk(x, chunks, path=path, out=kept), 4 * n + 6 * chunks.kept)
    new, error = torch.randn_like(x) * 0.1, torch.zeros_like(x)
    sparse = delta_topk(x, new, error, chunks, path=path)
    sent = chunks.kept * 2 + chunks.code_bytes(2) + 2 * chunks.count
    yield Op(
        "delta + error feedback + topk + 2-bit",
        lambda: delta_topk(x, new, error, chunks, beta=0.95, path=path, out=sparse),
        16 * n + sent,
    )
    payload = [torch.stack([part] * PEERS) for part in (sparse.indices, sparse.codes, sparse.scales)]
    weights = torch.full((PEERS,), 1 / PEERS, device=x.device)
    yield Op(
        f"sparse decode + mean, {PEERS} peers",
        lambda: sparse_decode(payload[0], payload[1], payload[2], weights, chunks, path=path, out=error),
        4 * n + PEERS * sent,
    )
    yield from _kept_operations(kept.indices, kept.values, chunks, path)
    if x.device.type == "cpu":
        found = threshold(x, 2.5, path=path).values.numel()
        yield Op("threshold 2.5", lambda: threshold(x, 2.5, path=path), 4 * n + 6 * found)
    yield from _dct_operations(x, error, path)


def _kept_operations(indices: torch.Tensor, values: torch.Tensor, chunks: Chunks, path: KernelPath) -> Iterator[Op]:
    coded = encode_values(values, chunks, path=path)
    small = 4 * chunks.kept + chunks.code_bytes(2) + 2 * chunks.count
    yield Op("encode values, 2-bit", lambda: encode_values(values, chunks, path=path, out=coded), small)
    yield Op("decode values, 2-bit", lambda: decode_values(coded, chunks, path=path, out=values), small)
    packed = encode_indices(indices, chunks, path=path)
    moved = 2 * chunks.kept + packed_bytes(chunks)
    yield Op("Elias-Fano encode", lambda: encode_indices(indices, chunks, path=path, out=packed), moved)
    yield Op("Elias-Fano decode", lambda: decode_indices(packed, chunks, path=path, out=indices), moved)
    yield Op(
        "random indices",
        lambda: random_indices(chunks, seed=1, device=indices.device, path=path, out=indices),
        2 * chunks.kept,
    )


def _dct_operations(x: torch.Tensor, out: torch.Tensor, path: KernelPath) -> Iterator[Op]:
    side = 64 * int((x.numel() // 4096) ** 0.5)
    matrix = x[: side * side].view(side, side)
    coefficients = out[: side * side]
    yield Op("DCT 64x64", lambda: dct(matrix, path=path, out=coefficients), 8 * side * side)
    back = torch.empty_like(coefficients)
    yield Op("inverse DCT 64x64", lambda: idct(coefficients, (side, side), path=path, out=back), 8 * side * side)
    kept = dct_topk(matrix, path=path)
    yield Op("DCT 64x64 + topk", lambda: dct_topk(matrix, path=path, out=kept), 4 * side * side * (1 + 6 / 256))


def rows(elements: int, device: torch.device, repeats: int) -> Rows:
    """One after the other."""
    return both_paths(elements, device, repeats, operations)


if __name__ == "__main__":
    main("Speed of the sparse and transform kernels as a share of copy.", rows)
