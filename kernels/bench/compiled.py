"""Speed of `torch.compile` on the ops of `dense.py` and `sparse.py`, as a share of copy.

    python kernels/bench/compiled.py [--elements 67108864] [--threads 2] [--repeats 7] [--device cpu]

Prints one JSON row for each op, path "compile", as `timing.py` says; the formulas are in `compiled_ops.py`. Ops that
draw random bits, and top-k fused with more, are left out: the compiler has no one kernel for them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import compiled_ops as plain
import torch
from lowcomm_kernels.dct.table import matrix
from timing import PEERS, SCALE_BYTES, Bench, Op, Rows, main
from torch import Tensor


def _compile(function: Callable[..., None]) -> Callable[..., None]:
    return torch.compile(function, dynamic=False, fullgraph=True)


def _code_operations(x: Tensor, new: Tensor, error: Tensor) -> Iterator[Op]:
    n = x.numel()
    quantise, delta = _compile(plain.quantise), _compile(plain.delta_quantise)
    dequantise, accumulate = _compile(plain.dequantise), _compile(plain.dequantise_accumulate)
    scales = torch.empty(n // plain.BLOCK, dtype=torch.int16, device=x.device)
    for bits in (8, 4, 2):
        codes = torch.empty(n * bits // 8, dtype=torch.uint8, device=x.device)
        quantise(x, codes, scales, bits)
        wire = n * (bits / 8 + SCALE_BYTES)
        name = f"int{bits}" if bits > 2 else "2-bit"
        yield Op(f"quantise {name}", lambda c=codes, b=bits: quantise(x, c, scales, b), 4 * n + wire)
        yield Op(
            f"delta + error feedback + {name}",
            lambda c=codes, b=bits: delta(x, new, error, 0.9, c, scales, b),
            16 * n + wire,
        )
        yield Op(f"dequantise {name}", lambda c=codes, b=bits: dequantise(c, scales, error, b), 4 * n + wire)
        yield Op(
            f"dequantise + accumulate {name}",
            lambda c=codes, b=bits: accumulate(c, scales, error, 0.1, b),
            8 * n + wire,
        )


def _other_operations(x: Tensor, out: Tensor) -> Iterator[Op]:
    n = x.numel()
    codes = torch.empty(n, dtype=torch.uint8, device=x.device)
    scales = torch.empty(n // plain.BLOCK, dtype=torch.int16, device=x.device)
    plain.quantise(x[: 1 << 20], codes[: 1 << 20], scales[: (1 << 20) // plain.BLOCK], 8)
    rows, row_scales = torch.stack([codes] * PEERS), torch.stack([scales.clamp(0, 0x4000)] * PEERS)
    reduce = _compile(plain.reduce_to_float)
    wire = n * (1 + SCALE_BYTES)
    yield Op(f"reduce {PEERS} peers int8 -> fp32", lambda: reduce(rows, row_scales, 0.25, out, 8), 4 * n + PEERS * wire)
    pack, unpack = _compile(plain.sign_pack), _compile(plain.sign_accumulate)
    words = torch.empty(n // 8, dtype=torch.uint8, device=x.device)
    wire = n * (1 / 8 + SCALE_BYTES)
    yield Op("sign pack", lambda: pack(x, words, scales), 4 * n + wire)
    yield Op("sign unpack + accumulate", lambda: unpack(words, scales, out, 0.1), 8 * n + wire)
    half = torch.empty(n, dtype=torch.int16, device=x.device)
    encode, decode = _compile(plain.encode_bf16), _compile(plain.decode_bf16)
    yield Op("encode bf16", lambda: encode(x, half), 6 * n)
    yield Op("decode bf16", lambda: decode(half, out), 6 * n)


def _sparse_operations(x: Tensor, out: Tensor) -> Iterator[Op]:
    n = x.numel()
    kept = n // plain.CHUNK * plain.KEEP
    indices = torch.empty(kept, dtype=torch.uint16, device=x.device)
    values = torch.empty(kept, device=x.device)
    choose, decode, transform = _compile(plain.topk), _compile(plain.sparse_decode), _compile(plain.dct)
    choose(x, indices, values)
    yield Op("topk 64/4096", lambda: choose(x, indices, values), 4 * n + 6 * kept)
    rows, row_values = torch.stack([indices] * PEERS), torch.stack([values] * PEERS)
    sent = kept * 2 + kept // 4 + 2 * n // plain.CHUNK
    yield Op(f"sparse decode + mean, {PEERS} peers", lambda: decode(rows, row_values, 0.25, out), 4 * n + PEERS * sent)
    side = 64 * int((n // 4096) ** 0.5)
    square, table = x[: side * side].view(side, side), matrix().to(x.device)
    yield Op("DCT 64x64", lambda: transform(square, table, out[: side * side]), 8 * side * side)


def rows(elements: int, device: torch.device, repeats: int) -> Rows:
    """One after the other. The elements are rounded down to whole chunks of 4096."""
    n = elements // plain.CHUNK * plain.CHUNK
    bench = Bench(n, device, min(repeats, 3))
    x = torch.randn(n, device=device)
    new, error = torch.randn_like(x) * 0.1, torch.zeros_like(x)
    for op in _code_operations(x, new, error):
        yield bench.row(op, "compile")
    for op in (*_other_operations(x, error), *_sparse_operations(x, error)):
        yield bench.row(op, "compile")


if __name__ == "__main__":
    main("Speed of torch.compile as a share of copy.", rows)
