"""Every Triton kernel against the eager reference on the CPU: odd sizes, adversarial values, poisoned outputs.

    python -m benchmarks.gpu_checks [--device cuda] [--small]

Prints one JSON row per op: {part, op, cases, same, differs}. Bits must be equal, but of the DCT, whose sums are of
another order: within 2e-6 of the norm. Needs torch and triton only; on the CPU Triton's interpreter
(TRITON_INTERPRET=1).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lowcomm_kernels.dct import dct, dct_topk, idct
from lowcomm_kernels.dequantise import dequantise, dequantise_accumulate
from lowcomm_kernels.elias_fano import decode_indices, encode_indices
from lowcomm_kernels.fp8 import decode_bf16, decode_fp8, encode_bf16, encode_fp8
from lowcomm_kernels.quantise import Quantised, delta_quantise, quantise
from lowcomm_kernels.randomk import gather, random_indices, window_indices
from lowcomm_kernels.reduce_quantised import reduce_quantised, reduce_to_float
from lowcomm_kernels.sign import Signs, delta_sign, sign_accumulate, sign_pack, sign_unpack
from lowcomm_kernels.sparse_decode import sparse_decode
from lowcomm_kernels.topk import Chunks, Coded, Kept, Sparse, decode_values, delta_topk, encode_values, topk
from lowcomm_kernels.vote import vote, vote_apply
from torch import Tensor

SHAPES = ((1, 16), (255, 16), (700, 48), (2348, 256), (5000, 4096), (1_000_003, 256))
"""Elements and block: shorter than a block, a block that is no power of two, full tiles and a rest, one row, many."""
KINDS = ("normal", "wide", "zero", "subnormal", "huge")
CHUNKS = ((4096 + 77, 4096, 64), (5, 4096, 64), (303, 100, 33), (17, 16, 1), (1_000_003, 4096, 64))
SMALL = 2
"""Shapes of each kind that `--small` keeps, from the second on: the interpreter takes its time."""
REF, FAST = "reference", "triton"
Case = tuple[str, bool]
"""What was compared, and whether it was the same."""


def data(numel: int, kind: str = "normal", seed: int = 0) -> Tensor:
    """fp32 [numel] on the CPU of one adversarial kind."""
    x = torch.randn(numel, generator=torch.Generator().manual_seed(seed + numel))
    if kind == "wide":
        return x * torch.logspace(-44, 37, numel)
    if kind == "zero":
        return torch.where(x > 0, 0.0, -0.0)
    if kind == "subnormal":
        return x * 1e-41
    if kind == "huge":
        return torch.where(x > 0, torch.finfo(torch.float32).max, -torch.finfo(torch.float32).max)
    return x


def poison(like: Tensor, device: torch.device) -> Tensor:
    """A buffer full of ones (NaN as a float) of the same shape: a byte that is left unwritten shows."""
    full = torch.full((like.numel() * like.element_size(),), 255, dtype=torch.uint8, device=device)
    return full.view(like.dtype).view(like.shape)


def same(expected: Tensor | Sequence[Tensor], given: Tensor | Sequence[Tensor]) -> bool:
    """Equal bytes."""
    if isinstance(expected, Tensor) or isinstance(given, Tensor):
        assert isinstance(expected, Tensor) and isinstance(given, Tensor)
        here = given.cpu().contiguous()
        alike = expected.dtype == here.dtype and expected.shape == here.shape
        return alike and torch.equal(expected.contiguous().view(torch.uint8), here.view(torch.uint8))
    return all(same(a, b) for a, b in zip(expected, given, strict=True))


def check_quantise(device: torch.device, shapes: Sequence[tuple[int, int]]) -> Iterator[Case]:
    """Codes and scales, with error feedback fused, and back."""
    for numel, block in shapes:
        for bits in (8, 4, 2):
            for number, kind in enumerate(KINDS):
                how: Any = {"bits": bits, "block": block, "rounding": ("nearest", "stochastic")[number % 2]}
                how |= {"seed": 2**64 - 5, "offset": 1 << 35}
                x = data(numel, kind)
                wanted = quantise(x, path=REF, **how)
                out = Quantised(*(poison(t, device) for t in wanted))
                yield "quantise", same(wanted, quantise(x.to(device), path=FAST, out=out, **how))
            how = {"beta": 0.9, "bits": bits, "block": block, "rounding": "nearest"}
            old, new, error = data(numel, seed=1), data(numel, seed=2), data(numel, "wide", 3)
            there, left = error.clone().to(device), poison(error, torch.device("cpu"))
            wanted = delta_quantise(old, new, error, error_out=left, path=REF, **how)
            yield (
                "delta_quantise",
                same(wanted, delta_quantise(old.to(device), new.to(device), there, path=FAST, **how)),
            )
            yield "delta_quantise", same(left, there)
            yield from _check_dequantise(device, numel, block, bits)


def _check_dequantise(device: torch.device, numel: int, block: int, bits: int) -> Iterator[Case]:
    how: Any = {"bits": bits, "block": block}
    q = quantise(data(numel), path=REF, **how)
    q_there = Quantised(*(t.to(device) for t in q))
    value = dequantise(q, numel, path=REF, **how)
    yield "dequantise", same(value, dequantise(q_there, numel, path=FAST, out=poison(value, device), **how))
    acc = data(numel, seed=1)
    acc_there = acc.clone().to(device)
    dequantise_accumulate(q, acc, 0.3, path=REF, **how)
    dequantise_accumulate(q_there, acc_there, 0.3, path=FAST, **how)
    yield "dequantise_accumulate", same(acc, acc_there)


def check_reduce(device: torch.device, shapes: Sequence[tuple[int, int]]) -> Iterator[Case]:
    """Sums of three peers' codes, whose rows lie apart as in a receive buffer."""
    for numel, block in shapes:
        for bits, out_bits in ((8, 8), (4, 2), (2, 4)):
            how: Any = {"bits": bits, "block": block}
            parts = [quantise(data(numel, seed=w), path=REF, **how) for w in range(3)]
            codes = torch.zeros(3, len(parts[0].codes) + 5, dtype=torch.uint8)
            codes[:, :-5] = torch.stack([q.codes for q in parts])
            scales, weights = torch.stack([q.scales for q in parts]), torch.tensor([0.3, 0.2, 0.5])
            here = (codes[:, :-5], scales, weights, numel)
            there = (codes.to(device)[:, :-5], scales.to(device), weights.to(device), numel)
            value = reduce_to_float(*here, path=REF, **how)
            given = reduce_to_float(*there, path=FAST, out=poison(value, device), **how)
            yield "reduce_to_float", same(value, given)
            left, other = poison(value, torch.device("cpu")), poison(value, device)
            wanted = reduce_quantised(*here, error_out=left, path=REF, out_bits=out_bits, **how)
            given = reduce_quantised(*there, error_out=other, path=FAST, out_bits=out_bits, **how)
            yield "reduce_quantised", same(wanted, given) and same(left, other)


def check_sign(device: torch.device, shapes: Sequence[tuple[int, int]]) -> Iterator[Case]:
    """One bit per element, with error feedback fused, and votes."""
    for numel, block in shapes:
        wanted = sign_pack(data(numel), block=block, path=REF)
        for kind in KINDS:
            x = data(numel, kind)
            wanted = sign_pack(x, block=block, path=REF)
            out = Signs(*(poison(t, device) for t in wanted))
            yield "sign_pack", same(wanted, sign_pack(x.to(device), block=block, path=FAST, out=out))
        signs = Signs(*(t.to(device) for t in wanted))
        value = sign_unpack(wanted, numel, block=block, path=REF)
        given = sign_unpack(signs, numel, block=block, path=FAST, out=poison(value, device))
        yield "sign_unpack", same(value, given)
        acc = data(numel, seed=1)
        there = acc.clone().to(device)
        sign_accumulate(wanted, acc, 0.3, block=block, path=REF)
        sign_accumulate(signs, there, 0.3, block=block, path=FAST)
        yield "sign_accumulate", same(acc, there)
        old, error = data(numel, seed=4), data(numel, seed=3)
        kept = error.clone().to(device)
        fused = delta_sign(old, None, error, beta=0.9, block=block, path=REF)
        yield "delta_sign", same(fused, delta_sign(old.to(device), None, kept, beta=0.9, block=block, path=FAST))
        yield "delta_sign", same(error, kept)


def check_vote(device: torch.device, shapes: Sequence[tuple[int, int]]) -> Iterator[Case]:
    """Majorities of bits with ties, of rows that lie apart."""
    for peers, size, gap in ((1, 1, 0), (2, 8, 0), (3, 9, 3), (4, 300, 4), (2, 4104, 8), (255, 12, 0)):
        words = torch.randint(0, 256, (peers, size + gap), generator=torch.Generator().manual_seed(peers))
        words = words.to(torch.uint8)
        here, there = words[:, :size], words.to(device)[:, :size]
        wanted = vote(here, tie_peer=peers - 1, path=REF)
        yield "vote", same(wanted, vote(there, tie_peer=peers - 1, path=FAST, out=poison(wanted, device)))
        target = data(8 * size - 3)
        other = target.clone().to(device)
        vote_apply(here, target, 0.1, path=REF)
        vote_apply(there, other, 0.1, path=FAST)
        yield "vote_apply", same(target, other)


def check_fp8(device: torch.device, shapes: Sequence[tuple[int, int]]) -> Iterator[Case]:
    """fp8 with a scale per block, and bf16."""
    for numel, block in shapes:
        for kind in KINDS:
            x = data(numel, kind)
            wanted = encode_fp8(x, block=block, path=REF)
            out = Quantised(*(poison(t, device) for t in wanted))
            yield "encode_fp8", same(wanted, encode_fp8(x.to(device), block=block, path=FAST, out=out))
            value = decode_fp8(wanted, block=block, path=REF)
            q = Quantised(*(t.to(device) for t in wanted))
            yield "decode_fp8", same(value, decode_fp8(q, block=block, path=FAST, out=poison(value, device)))
            bits = encode_bf16(x, path=REF)
            yield "encode_bf16", same(bits, encode_bf16(x.to(device), path=FAST, out=poison(bits, device)))
            back = decode_bf16(bits, path=REF)
            yield "decode_bf16", same(back, decode_bf16(bits.to(device), path=FAST, out=poison(back, device)))


def check_topk(device: torch.device, chunks_of: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
    """The k largest of each chunk, their values in few bits, with error feedback fused, and the mean of peers."""
    for numel, chunk, k in chunks_of:
        chunks = Chunks(numel, chunk, k)
        for kind in KINDS[:4]:
            x = data(numel, kind)
            kept = topk(x, chunks, path=REF)
            out = Kept(poison(kept.indices, device), poison(kept.values, device))
            found = topk(x.to(device), chunks, path=FAST, out=out)
            yield "topk", same((kept.indices, kept.values), (found.indices, found.values))
        for bits in (2, 8, 16):
            yield from _check_values(device, chunks, bits)
            old, new, error = (data(numel, seed=s) for s in range(3))
            left = error.clone().to(device)
            wanted = delta_topk(old, new, error, chunks, beta=0.9, bits=bits, path=REF)
            given = delta_topk(old.to(device), new.to(device), left, chunks, beta=0.9, bits=bits, path=FAST)
            yield "delta_topk", same(_parts(wanted), _parts(given)) and same(error, left)
            payload = [torch.stack([part] * 3) for part in _parts(wanted)]
            weights, there = torch.tensor([0.2, 0.5, 0.3]), [part.to(device) for part in payload]
            mean = sparse_decode(payload[0], payload[1], payload[2], weights, chunks, bits=bits, path=REF)
            given = sparse_decode(
                there[0], there[1], there[2], weights.to(device), chunks, bits=bits, path=FAST,
                out=poison(mean, device),
            )  # fmt: skip
            yield "sparse_decode", same(mean, given)


def _parts(sparse: Sparse) -> tuple[Tensor, Tensor, Tensor]:
    return sparse.indices, sparse.codes, sparse.scales


def _check_values(device: torch.device, chunks: Chunks, bits: Any) -> Iterator[Case]:
    values = data(chunks.kept, seed=5)
    coded = encode_values(values, chunks, bits=bits, path=REF)
    out = Coded(poison(coded.codes, device), poison(coded.scales, device))
    given = encode_values(values.to(device), chunks, bits=bits, path=FAST, out=out)
    yield "encode_values", same((coded.codes, coded.scales), (given.codes, given.scales))
    back = decode_values(coded, chunks, bits=bits, path=REF)
    there = Coded(coded.codes.to(device), coded.scales.to(device))
    yield "decode_values", same(back, decode_values(there, chunks, bits=bits, path=FAST, out=poison(back, device)))


def check_indices(device: torch.device, chunks_of: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
    """Elias-Fano codes, indices that all islands draw alike, and what lies at them."""
    for numel, chunk, k in chunks_of:
        chunks = Chunks(numel, chunk, k)
        indices = topk(data(numel), chunks, path=REF).indices
        packed = encode_indices(indices, chunks, path=REF)
        given = encode_indices(indices.to(device), chunks, path=FAST, out=poison(packed, device))
        yield "encode_indices", same(packed, given)
        given = decode_indices(packed.to(device), chunks, path=FAST, out=poison(indices, device))
        yield "decode_indices", same(indices, given)
        for seed in (0, 2**64 - 1):
            drawn = random_indices(chunks, seed=seed, path=REF)
            out = poison(drawn, device)
            yield "random_indices", same(drawn, random_indices(chunks, seed=seed, device=device, path=FAST, out=out))
            turn = seed % 2**40
            window, out = window_indices(chunks, turn=turn, path=REF), poison(drawn, device)
            yield "window_indices", same(window, window_indices(chunks, turn=turn, device=device, path=FAST, out=out))
        x = data(numel)
        values = gather(x, indices, chunks, path=REF)
        given = gather(x.to(device), indices.to(device), chunks, path=FAST, out=poison(values, device))
        yield "gather", same(values, given)


def check_dct(device: torch.device, shapes: Sequence[tuple[int, int]]) -> Iterator[Case]:
    """The transform in blocks of 64 x 64, there and back."""
    for shape in ((63,), (4100,), (1, 1), (130, 70)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        wanted, bound = dct(x, path=REF), 2e-6 * float(x.norm())
        given = dct(x.to(device), path=FAST, out=poison(wanted, device)).cpu()
        yield "dct", bool(((given - wanted).abs() <= bound).all())
        back = idct(wanted.to(device), shape, path=FAST).cpu()
        yield "idct", bool(((back - x).abs() <= bound).all())
        if x.dim() == 2:
            a, b = dct_topk(x, k=20, path=REF), dct_topk(x.to(device), k=20, path=FAST)
            alike = torch.equal(a.indices.long(), b.indices.cpu().long())
            yield "dct_topk", alike and bool(((a.values - b.values.cpu()).abs() <= bound).all())


DENSE = (check_quantise, check_reduce, check_sign, check_vote, check_fp8, check_dct)
SPARSE = (check_topk, check_indices)


def rows(device: torch.device, small: bool) -> Iterator[dict[str, Any]]:
    """One row per op, each as soon as its checks are through."""
    shapes, chunks = (SHAPES[1 : 1 + SMALL], CHUNKS[1 : 1 + SMALL]) if small else (SHAPES, CHUNKS)
    checks: list[Callable[[], Iterator[Case]]] = [lambda c=c: c(device, shapes) for c in DENSE]
    checks += [lambda c=c: c(device, chunks) for c in SPARSE]
    for check in checks:
        found: dict[str, list[bool]] = {}
        for op, alike in check():
            found.setdefault(op, []).append(alike)
        for op, alike in found.items():
            yield {"part": "check", "op": op, "cases": len(alike), "same": all(alike), "differs": alike.count(False)}


def main() -> None:
    """Print the rows; exit with 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--small", action="store_true", help="few shapes")
    options = parser.parse_args()
    good = True
    for row in rows(torch.device(options.device), options.small):
        good = good and bool(row["same"])
        print(json.dumps(row), flush=True)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
