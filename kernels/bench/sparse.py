"""Speed of the sparse and transform kernels as a share of the machine's own copy, interleaved in one run.

    python kernels/bench/sparse.py [--elements 67108864] [--threads 2] [--repeats 7] [--device cpu]

Prints one JSON row for each op and path: {op, path, gb_per_s, share_of_copy}. `gb_per_s` counts the least traffic of
the op (bytes that the specification reads and writes); a copy counts what it reads and what it writes. Eager torch runs
on at most 8M elements, beside a copy of that size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lowcomm_kernels.dct import dct, dct_topk, idct
from lowcomm_kernels.dispatch import Path as KernelPath
from lowcomm_kernels.elias_fano import decode_indices, encode_indices, packed_bytes
from lowcomm_kernels.randomk import random_indices
from lowcomm_kernels.sparse_decode import sparse_decode
from lowcomm_kernels.topk import Chunks, decode_values, delta_topk, encode_values, threshold, topk

EAGER_ELEMENTS = 8 << 20
PEERS = 4


@dataclass(frozen=True)
class Op:
    name: str
    call: Callable[[], object]
    traffic_bytes: float
    """What the specification reads and writes, once."""


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def measure(op: Op, source: torch.Tensor, target: torch.Tensor, repeats: int) -> tuple[float, float]:
    """GB/s of the op's least traffic, and the median over repeats of its share of the copy made just before it."""
    op.call()  # compiles, and touches the pages of outputs
    target.copy_(source)
    speeds, shares = [], []
    copied_bytes = 2 * source.numel() * source.element_size()
    for _ in range(repeats):
        copy = copied_bytes / _seconds(lambda: target.copy_(source), source.device)
        speed = op.traffic_bytes / _seconds(op.call, source.device)
        speeds.append(speed / 1e9)
        shares.append(speed / copy)
    return statistics.median(speeds), statistics.median(shares)


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


def rows(elements: int, device: torch.device, repeats: int) -> Iterator[dict[str, object]]:
    """The rows, one after the other; the numba or Triton path at full size, eager torch on at most 8M elements."""
    fast: KernelPath = "numba" if device.type == "cpu" else "triton"
    paths: tuple[KernelPath, ...] = (fast, "reference")
    for path in paths:
        label = "eager" if path == "reference" else path
        n = elements if path == fast else min(elements, EAGER_ELEMENTS)
        x = torch.randn(n, device=device)
        source, target = torch.randn(n, device=device), torch.empty(n, device=device)
        for op in operations(x, path):
            speed, share = measure(op, source, target, repeats if path == fast else min(repeats, 3))
            yield {"op": op.name, "path": label, "gb_per_s": round(speed, 2), "share_of_copy": round(share, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--elements", type=int, default=64 << 20, help="fp32 elements of the dense tensors")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=7, help="timed pairs of copy and op; the median counts")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing measured, nothing written", file=sys.stderr)
        raise SystemExit(2)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    for row in rows(arguments.elements, torch.device(arguments.device), arguments.repeats):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
