"""Sparse and transform Triton kernels compiled ahead of time, without a GPU: registers, spills, memory.

    python kernels/bench/aot_sparse.py          prints one JSON row for each kernel and target

Chunk 4096, k 64. `global_bytes_per_element` is read off the PTX (gfx942: the assembly) for 16-byte accesses, which all
lanes do; narrower ones are predicated on the kept entries, so those bytes come from the format (`kept_bytes` of an
entry). The DCT's figure holds the 4 bytes per element of its 16 KiB matrix, which stays in the L1 cache.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

TARGETS = (("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32), ("hip", "gfx942", 64))
_WIDE = re.compile(r"(?:ld|st)\.global(?:\.\w+)*\.(?:v4\.b32|v4\.f32|v2\.b64|v4\.b64|v2\.u64)\b")
_HIP = re.compile(r"\b(?:global|buffer)_(?:load|store)_dwordx([24])\b")
"""4: 16 bytes. 2: the 8-bit codes of a lane of a wave of 64, which holds half as many elements as one of 32."""


@dataclass(frozen=True)
class Entry:
    """One kernel with the arguments of its main use."""

    name: str
    kernel: Any
    signature: dict[str, str]
    """Type of each run-time argument; the integers in `MULTIPLES` are multiples of 16, as the launcher sees them."""
    constants: Mapping[str, object]
    warps: int
    elements: int
    """Elements of the dense tensor that a program covers; kept entries for kernels that see only those."""
    kept_bytes: int
    """Bytes of kept entries that a program reads or writes, by the format."""
    wide: bool
    """The dense tensor is moved 16 bytes at a time."""
    registers_cap: int


MULTIPLES = ("n", "k", "size", "rows", "columns", "numel", "total", "kept", "code_bytes", "k_stride", "low_size")
_ROW, _CODE, _WORD, _BAD = "*u16", "*u8", "*u16", "*i32"


def entries() -> list[Entry]:
    """All kernels; imports triton."""
    return [*_topk_entries(), *_coding_entries(), *_dct_entries()]


def _topk_entries() -> list[Entry]:
    from lowcomm_kernels.sparse_decode import triton as decode
    from lowcomm_kernels.topk import triton as topk

    plain = {"x": "*fp32", "indices": _ROW, "values": "*fp32", "bad": _BAD, "n": "i32", "k": "i32"}
    found = [Entry("topk", topk._topk_kernel, plain, {"BLOCK": 4096}, 8, 4096, 6 * 64 + 4, True, 112)]
    for bits in (2, 8, 16):
        signature = {
            "old": "*fp32", "new": "*fp32", "error": "*fp32", "beta": "fp32", "indices": _ROW, "values": "*fp32",
            "codes": _CODE, "scales": _WORD, "bad": _BAD, "n": "i32", "k": "i32", "size": "i32",
        }  # fmt: skip
        constants = {"HAS_NEW": True, "BITS": bits, "BLOCK": 4096, "KEEP": 64}
        # Written, read back (indices and values), the codes, the new error.
        kept = 64 * 6 * 2 + 64 * bits // 8 + 2 + 64 * 4 + 4
        found.append(
            Entry(f"delta_topk_{bits}", topk._delta_topk_kernel, signature, constants, 8, 4096, kept, True, 128)
        )
    signature = {
        "indices": _ROW, "codes": _CODE, "scales": _WORD, "weights": "*fp32", "out": "*fp32", "bad": _BAD,
        "peers": "i32", "kept": "i32", "code_bytes": "i32", "count": "i32", "n": "i32", "k": "i32", "size": "i32",
    }  # fmt: skip
    constants = {"BITS": 2, "BLOCK": 4096, "KEEP": 64}
    one_peer = 64 * 2 + 16 + 2 + 64 * 8 + 4
    kernel = decode._sparse_decode_kernel
    found.append(Entry("sparse_decode_2", kernel, signature, constants, 4, 4096, one_peer, True, 40))
    return found


def _coding_entries() -> list[Entry]:
    from lowcomm_kernels.elias_fano import triton as elias_fano
    from lowcomm_kernels.randomk import triton as randomk
    from lowcomm_kernels.topk import values_triton as values

    tail = {"bad": _BAD, "full": "i32", "k": "i32", "tail_k": "i32", "size": "i32"}
    encode = {"values": "*fp32", "codes": _CODE, "scales": _WORD, **tail}
    decode = {"codes": _CODE, "scales": _WORD, "values": "*fp32", **tail}
    sizes = {
        "bad": _BAD, "k_stride": "i32", "n": "i32", "k": "i32", "low": "i32", "low_size": "i32", "size": "i32",
        "first": "i32",
    }  # fmt: skip
    cut = {"chunk": "i32", "k": "i32", "full": "i32", "tail": "i32", "tail_k": "i32"}
    small, keep = {"BITS": 2, "KEEP": 64}, {"KEEP": 64}
    pack, unpack = {"KEEP": 64, "LOW": 64, "UPPER": 16}, {"KEEP": 64, "UPPER": 16}
    to_bytes, from_bytes = {"indices": _ROW, "packed": _CODE, **sizes}, {"packed": _CODE, "indices": _ROW, **sizes}
    random, window = {"indices": _ROW, "seed": "i64", **cut}, {"indices": _ROW, "turn": "i64", **cut}
    return [
        Entry("encode_values_2", values._encode_kernel, encode, small, 1, 64, 64 * 4 + 18 + 4, False, 64),
        Entry("decode_values_2", values._decode_kernel, decode, small, 1, 64, 64 * 4 + 18 + 4, False, 32),
        Entry("elias_fano_encode", elias_fano._encode_kernel, to_bytes, pack, 1, 64, 64 * 2 + 64 + 4, False, 64),
        Entry("elias_fano_decode", elias_fano._decode_kernel, from_bytes, unpack, 1, 64, 64 * 2 + 64 + 4, False, 48),
        Entry("random_indices", randomk._random_kernel, random, keep, 1, 64, 64 * 2, False, 64),
        Entry("window_indices", randomk._window_kernel, window, keep, 1, 64, 64 * 2, False, 40),
    ]


def _dct_entries() -> list[Entry]:
    from lowcomm_kernels.dct import triton as dct

    shape = {"rows": "i32", "columns": "i32", "numel": "i32", "across": "i32"}
    forward = {"x": "*fp32", "table": "*fp32", "out": "*fp32", "bad": _BAD, **shape, "total": "i32"}
    backward = {"z": "*fp32", "table": "*fp32", "out": "*fp32", **shape, "total": "i32"}
    fused = {
        "x": "*fp32", "table": "*fp32", "indices": _ROW, "values": "*fp32", "bad": _BAD, **shape, "k": "i32",
    }  # fmt: skip
    return [
        Entry("dct", dct._dct_kernel, forward, {"TWO": True}, 8, 4096, 4, True, 96),
        Entry("idct", dct._idct_kernel, backward, {"TWO": True}, 8, 4096, 0, True, 96),
        Entry("dct_topk", dct._dct_topk_kernel, fused, {}, 16, 4096, 64 * 6 + 4, True, 112),
    ]


def compile_entry(entry: Entry, target: tuple[str, int | str, int]) -> dict[str, object]:
    """The row of one kernel for one target, and the count of 16-byte accesses (`wide_accesses`).

    Raises:
        whatever the compiler raises for a kernel that does not compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    index = entry.kernel.arg_names.index
    signature = {**entry.signature, **dict.fromkeys(entry.constants, "constexpr")}
    aligned = [name for name, kind in entry.signature.items() if kind[0] == "*" or name in MULTIPLES]
    attributes = {(index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(entry.kernel, signature, {(index(n),): v for n, v in entry.constants.items()}, attributes)
    options = {"num_warps": entry.warps, "enable_fp_fusion": False}
    binary: Any = triton.compile(source, target=GPUTarget(*target), options=options)
    row: dict[str, object] = {"kernel": entry.name, "target": f"sm_{target[1]}" if target[0] == "cuda" else target[1]}
    if target[0] == "hip":
        text = binary.asm["amdgcn"]
        registers, spilled = (int(_first(rf"\.{name}:\s*(\d+)", text)) for name in ("vgpr_count", "vgpr_spill_count"))
        spill, widths = 4 * spilled, _HIP.findall(text)
        wide, lane_bytes = widths.count("4"), 4 * sum(map(int, widths))
    else:
        registers, spill = _cubin_resources(binary.asm["cubin"])
        wide = len(_WIDE.findall(binary.asm["ptx"]))
        lane_bytes = 16 * wide
    moved = (lane_bytes * target[2] * entry.warps if entry.wide else 0) + entry.kept_bytes
    row |= {"registers": registers, "spill_bytes": spill, "shared_bytes": binary.metadata.shared}
    row |= {"global_bytes_per_element": round(moved / entry.elements, 3), "wide_accesses": wide}
    return row | {"registers_cap": entry.registers_cap, "warps": entry.warps, "triton": triton.__version__}


def _cubin_resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes (over 0: spills) of a cubin."""
    import triton

    tool = os.path.join(os.path.dirname(triton.__file__), "backends/nvidia/bin/cuobjdump")  # noqa: PTH118, PTH120
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(_first(r"REG:(\d+)", text)), int(_first(r"STACK:(\d+)", text))


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"pattern {pattern!r} not found in the compiler's output; its format has changed")
    return match[1]


def rows(targets: tuple[tuple[str, int | str, int], ...] = TARGETS) -> Iterator[dict[str, object]]:
    for entry in entries():
        for target in targets:
            yield compile_entry(entry, target)


if __name__ == "__main__":
    for found in rows():
        print(json.dumps(found))
