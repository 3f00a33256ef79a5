"""All Triton kernels compiled ahead of time, without a GPU: registers, spills, memory.

    python kernels/bench/aot.py          prints one JSON row for each kernel and target

Dense kernels: block 256, full tiles of 2048 elements, 4 warps, one peer. `global_bytes_per_element` is read off the PTX
or assembly for 16-byte accesses; scales and codes under 8 bits are narrower by their nature, so those
bytes come from the format.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import aot_sparse
from aot_sparse import TARGETS, Entry

_TILE = {"ROWS": 8, "BLOCK": 256, "WIDTH": 256}
_FULL = {"LOG": 8, "MASKED": False}
_LAST = {"n": "i64", "first_tile": "i32"}
_MULTIPLES = ("step", "codes_step", "scales_step")
"""Rows of a receive buffer that are padded to 16; nothing is assumed of the sizes, as full tiles carry no mask."""


def _entry(
    name: str, kernel: Any, signature: dict[str, str], constants: dict[str, object], cap: int, narrow_bytes: int
) -> Entry:
    """`narrow_bytes`: what a program moves in accesses under 16 bytes (codes under 8 bits, scales), by the format."""
    return Entry(name, kernel, signature, constants, 4, 2048, narrow_bytes, True, cap)


def _codes(bits: int) -> int:
    """Bytes of a tile's scales, and of its codes where those are too short for 16-byte accesses."""
    return 2 * 8 + (2048 * bits // 8 if bits < 8 else 0)


def _code_entries() -> list[Entry]:
    from lowcomm_kernels.quantise import triton as quantise

    plain = {"x": "*fp32", "codes": "*u8", "scales": "*i16", "flag": "*i64", "n": "i64", "seed": "i64", "offset": "i64"}
    fused = {
        "old": "*fp32", "new": "*fp32", "error": "*fp32", "error_out": "*fp32", "codes": "*u8", "scales": "*i16",
        "flag": "*i64", "n": "i64", "beta": "fp32", "seed": "i64", "offset": "i64", "first_tile": "i32",
    }  # fmt: skip
    found = []
    for bits in (8, 4, 2):
        for random in (False, True):
            constants = {"BITS": bits, "STOCHASTIC": random, **_TILE, **_FULL}
            tail = "_stochastic" if random else ""
            found.append(
                _entry(
                    f"quantise_{bits}{tail}",
                    quantise.quantise_kernel,
                    plain | {"first_tile": "i32"},
                    constants,
                    96,
                    _codes(bits),
                )
            )
            fused_constants = {"HAS_NEW": True, **constants}
            kernel = quantise.delta_quantise_kernel
            found.append(_entry(f"delta_quantise_{bits}{tail}", kernel, fused, fused_constants, 88, _codes(bits)))
    return found


def _reduce_entries() -> list[Entry]:
    from lowcomm_kernels.dequantise import triton as dequantise
    from lowcomm_kernels.reduce_quantised import triton as reduced

    decode = {"codes": "*u8", "scales": "*i16", "out": "*fp32", "n": "i64", "weight": "fp32", "first_tile": "i32"}
    rows = {"codes": "*u8", "codes_step": "i64", "scales": "*i16", "scales_step": "i64", "weights": "*fp32"}
    total = {**rows, "peers": "i32", "out": "*fp32", **_LAST}
    again = {
        **rows, "peers": "i32", "out": "*u8", "out_scales": "*i16", "error": "*fp32", "flag": "*i64", "n": "i64",
        "seed": "i64", "offset": "i64", "first_tile": "i32",
    }  # fmt: skip
    found = []
    for bits in (8, 4, 2):
        code = {"BITS": bits, **_TILE, "MASKED": False}
        kernel = dequantise.dequantise_kernel
        found.append(_entry(f"dequantise_{bits}", kernel, decode, {"ACCUMULATE": False, **code}, 56, _codes(bits)))
        found.append(
            _entry(f"dequantise_accumulate_{bits}", kernel, decode, {"ACCUMULATE": True, **code}, 56, _codes(bits))
        )
        found.append(_entry(f"reduce_to_float_{bits}", reduced.reduce_to_float_kernel, total, code, 80, _codes(bits)))
        constants = {
            "HAS_ERROR": True, "BITS": bits, "OUT_BITS": bits, "STOCHASTIC": False, **_TILE, **_FULL,
        }  # fmt: skip
        found.append(_entry(f"reduce_quantised_{bits}", reduced.reduce_kernel, again, constants, 88, 2 * _codes(bits)))
    return found


def _other_entries() -> list[Entry]:
    from lowcomm_kernels.fp8 import triton as fp8
    from lowcomm_kernels.sign import triton as sign
    from lowcomm_kernels.vote import triton as vote

    out = {"words": "*u8", "scales": "*i16"}
    pack = {"x": "*fp32", **out, "flag": "*i64", **_LAST}
    fused = {
        "old": "*fp32", "new": "*fp32", "error": "*fp32", "error_out": "*fp32", **out, "flag": "*i64", "n": "i64",
        "beta": "fp32", "first_tile": "i32",
    }  # fmt: skip
    unpack = {**out, "out": "*fp32", "n": "i64", "weight": "fp32", "first_tile": "i32"}
    full = {**_TILE, **_FULL}
    plain = {**_TILE, "MASKED": False}
    encode = {"x": "*fp32", "codes": "*u8", "scales": "*i16", "flag": "*i64", **_LAST}
    half = {"ROWS": 8, "BLOCK": 256, "MASKED": False}
    poll = {
        "words": "*i32",
        "step": "i64",
        "peers": "i32",
        "tie_peer": "i32",
        "out": "*i32",
        "size": "i32",
        "first_tile": "i32",
    }
    apply = {
        "words": "*u8", "step": "i64", "peers": "i32", "tie_peer": "i32", "target": "*fp32", "n": "i64",
        "size": "i64", "move": "fp32", "first_tile": "i32",
    }  # fmt: skip
    accumulate = {"ACCUMULATE": True, **plain}
    return [
        _entry("sign_pack", sign.sign_pack_kernel, pack, full, 80, 272),
        _entry("delta_sign", sign.delta_sign_kernel, fused, {"HAS_NEW": True, **full}, 88, 272),
        _entry("sign_accumulate", sign.sign_unpack_kernel, unpack, accumulate, 56, 272),
        Entry("vote", vote.vote_kernel, poll, {"WORDS": 1024, "MASKED": False}, 4, 32 * 1024, 0, True, 104),
        _entry("vote_apply", vote.vote_apply_kernel, apply, {"BYTES": 256, "MASKED": False}, 80, 512),
        _entry("encode_fp8", fp8.encode_fp8_kernel, encode, plain, 80, 16),
        _entry(
            "decode_fp8",
            fp8.decode_fp8_kernel,
            {"codes": "*u8", "scales": "*i16", "out": "*fp32", **_LAST},
            plain,
            64,
            16,
        ),
        _entry(
            "encode_bf16", fp8.encode_bf16_kernel, {"x": "*fp32", "out": "*i16", "flag": "*i64", **_LAST}, half, 64, 0
        ),
        _entry("decode_bf16", fp8.decode_bf16_kernel, {"bits": "*i16", "out": "*fp32", **_LAST}, half, 56, 0),
    ]


def entries() -> list[Entry]:
    """The dense kernels; imports triton."""
    return [*_code_entries(), *_reduce_entries(), *_other_entries()]


def compile_entry(entry: Entry, target: tuple[str, int | str, int]) -> dict[str, object]:
    """As `aot_sparse.compile_entry`, for a dense entry."""
    kept = aot_sparse.MULTIPLES
    aot_sparse.MULTIPLES = _MULTIPLES
    try:
        return aot_sparse.compile_entry(entry, target)
    finally:
        aot_sparse.MULTIPLES = kept


def rows(targets: tuple[tuple[str, int | str, int], ...] = TARGETS) -> Iterator[dict[str, object]]:
    """Dense, then sparse."""
    for entry in entries():
        for target in targets:
            yield compile_entry(entry, target)
    yield from aot_sparse.rows(targets)


if __name__ == "__main__":
    for found in rows():
        print(json.dumps(found))
