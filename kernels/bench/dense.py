"""Speed of the dense kernels as a share of the machine's own copy, interleaved in one run.

    python kernels/bench/dense.py [--elements 67108864] [--threads 2] [--repeats 7] [--device cpu]

Prints one JSON row for each op and path, as `timing.py` says. Eager torch runs on at most 8M elements.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from lowcomm_kernels.dequantise import dequantise, dequantise_accumulate
from lowcomm_kernels.dispatch import Path as KernelPath
from lowcomm_kernels.fp8 import decode_bf16, decode_fp8, encode_bf16, encode_fp8
from lowcomm_kernels.quantise import delta_quantise, quantise
from lowcomm_kernels.reduce_quantised import reduce_quantised, reduce_to_float
from lowcomm_kernels.sign import delta_sign, sign_accumulate, sign_pack
from lowcomm_kernels.vote import vote, vote_apply
from timing import PEERS, SCALE_BYTES, Op, Rows, both_paths, main


def _code_operations(x: torch.Tensor, new: torch.Tensor, error: torch.Tensor, path: KernelPath) -> Iterator[Op]:
    n = x.numel()
    for bits in (8, 4, 2):
        wire = n * (bits / 8 + SCALE_BYTES)
        name = f"int{bits}" if bits > 2 else "2-bit"
        q = quantise(x, bits=bits, path=path)
        yield Op(f"quantise {name}", lambda b=bits, q=q: quantise(x, bits=b, path=path, out=q), 4 * n + wire)
        yield Op(
            f"quantise {name}, stochastic",
            lambda b=bits, q=q: quantise(x, bits=b, rounding="stochastic", path=path, out=q),
            4 * n + wire,
        )
        yield Op(
            f"delta + error feedback + {name}",
            lambda b=bits, q=q: delta_quantise(x, new, error, beta=0.9, bits=b, path=path, out=q),
            16 * n + wire,
        )
        yield Op(f"dequantise {name}", lambda b=bits, q=q: dequantise(q, n, bits=b, path=path, out=error), 4 * n + wire)
        yield Op(
            f"dequantise + accumulate {name}",
            lambda b=bits, q=q: dequantise_accumulate(q, error, 0.1, bits=b, path=path),
            8 * n + wire,
        )


def _reduce_operations(x: torch.Tensor, error: torch.Tensor, path: KernelPath) -> Iterator[Op]:
    n = x.numel()
    weights = torch.full((PEERS,), 1 / PEERS, device=x.device)
    q = quantise(x, bits=8, path=path)
    codes, scales = torch.stack([q.codes] * PEERS), torch.stack([q.scales] * PEERS)
    wire = n * (1 + SCALE_BYTES)
    yield Op(
        f"reduce {PEERS} peers int8 -> int8",
        lambda: reduce_quantised(codes, scales, weights, n, bits=8, path=path, out=q),
        (PEERS + 1) * wire,
    )
    yield Op(
        f"reduce {PEERS} peers int8 -> fp32",
        lambda: reduce_to_float(codes, scales, weights, n, bits=8, path=path, out=error),
        4 * n + PEERS * wire,
    )


def _other_operations(x: torch.Tensor, new: torch.Tensor, error: torch.Tensor, path: KernelPath) -> Iterator[Op]:
    n = x.numel()
    s = sign_pack(x, path=path)
    wire = n * (1 / 8 + SCALE_BYTES)
    yield Op("sign pack", lambda: sign_pack(x, path=path, out=s), 4 * n + wire)
    yield Op(
        "delta + error feedback + sign", lambda: delta_sign(x, new, error, beta=0.9, path=path, out=s), 16 * n + wire
    )
    yield Op("sign unpack + accumulate", lambda: sign_accumulate(s, error, 0.1, path=path), 8 * n + wire)
    words = torch.stack([s.words] * PEERS)
    yield Op(f"vote, {PEERS} peers", lambda: vote(words, path=path, out=s.words), (PEERS + 1) * n / 8)
    yield Op(f"vote + apply, {PEERS} peers", lambda: vote_apply(words, error, 1e-3, path=path), PEERS * n / 8 + 8 * n)
    f = encode_fp8(x, path=path)
    yield Op("encode fp8", lambda: encode_fp8(x, path=path, out=f), n * (5 + SCALE_BYTES))
    yield Op("decode fp8", lambda: decode_fp8(f, path=path, out=error), n * (5 + SCALE_BYTES))
    half = encode_bf16(x, path=path)
    yield Op("encode bf16", lambda: encode_bf16(x, path=path, out=half), 6 * n)
    yield Op("decode bf16", lambda: decode_bf16(half, path=path, out=error), 6 * n)


def operations(x: torch.Tensor, path: KernelPath) -> Iterator[Op]:
    """The ops on `x` (fp32 [N]) with preallocated outputs, block 256."""
    new, error = torch.randn_like(x) * 0.1, torch.zeros_like(x)
    yield Op("copy", lambda: error.copy_(x), 8 * x.numel())
    yield from _code_operations(x, new, error, path)
    yield from _reduce_operations(x, error, path)
    yield from _other_operations(x, new, error, path)


def rows(elements: int, device: torch.device, repeats: int) -> Rows:
    """One after the other."""
    return both_paths(elements, device, repeats, operations)


if __name__ == "__main__":
    main("Speed of the dense kernels as a share of copy.", rows)
