"""What the planner knows of each codec: bytes of a payload, what encoding costs, how a recipe writes it.

Sizes are those of `lowcomm.codec`, whose layouts `lowcomm_kernels` specifies. Seconds per parameter are those of the
whole path on one CPU thread: encode, error feedback, checksums, copies of the transport and decode; measured by
`benchmarks.planner_constants` (two processes on the loopback device).
Loss penalties: int4 none (Streaming DiLoCo, arXiv 2501.18512: FP4 loses nothing; here +0.20 %), 2 bits 0.1 % (MuLoCo,
arXiv 2505.23725: near-lossless; here +0.09 %), int8 none. Sparse top-k is ahead of fp32 in SparseLoCo, arXiv
2508.15706, but 10.2 % behind it after the 160 rounds of results/codecs.json: it is only planned when asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HEADER_BYTES = 64
"""In front of each payload."""


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A codec as a cost."""

    name: str
    kind: Literal["plain", "dense", "gathered"]
    """plain: fp32 vectors summed as they are; dense: packed vectors cut at blocks; gathered: whole payloads to all."""
    bits: int
    """Of one value on the wire."""
    block: int | None = None
    """Elements under one scale of 2 bytes; None: no scales."""
    chunk: int | None = None
    """Elements of which top-k keeps `k`; None: all are sent."""
    k: int = 0
    """Entries kept of each chunk."""
    codec_s_per_parameter: float
    """Seconds of one CPU thread per parameter and sync, for two islands."""
    penalty: float
    """Part by which the loss is expected to be above that of fp32."""
    recipe: str
    """The expression of a recipe."""
    imports: tuple[str, ...]
    """Names that the expression takes from lowcomm.codec."""

    @property
    def granule(self) -> int:
        """Elements at whose multiples a vector may be cut."""
        return self.block or 256

    def body_bytes(self, numel: int) -> int:
        """Bytes of a payload of `numel` elements without its header."""
        from lowcomm_kernels.bits import block_count, packed_bytes  # they import torch
        from lowcomm_kernels.elias_fano import layout as elias_fano
        from lowcomm_kernels.topk.layout import Chunks

        if self.chunk is not None:
            chunks = Chunks(numel, self.chunk, self.k)
            scales = 2 * chunks.scale_count(self.bits)
            return elias_fano.packed_bytes(chunks) + scales + chunks.code_bytes(self.bits)
        scales = 0 if self.block is None else 2 * block_count(numel, self.block)
        return scales + packed_bytes(numel, self.bits)


FP32 = Coded(
    name="fp32",
    kind="plain",
    bits=32,
    codec_s_per_parameter=3.4e-9,
    penalty=0.0,
    recipe="Fp32()",
    imports=("Fp32",),
)
INT8 = Coded(
    name="int8",
    kind="dense",
    bits=8,
    block=256,
    codec_s_per_parameter=7e-9,
    penalty=0.0,
    recipe="ErrorFeedback(codec=Int8())",
    imports=("ErrorFeedback", "Int8"),
)
INT4 = Coded(
    name="int4",
    kind="dense",
    bits=4,
    block=256,
    codec_s_per_parameter=7.5e-9,
    penalty=0.0,
    recipe="ErrorFeedback(codec=Int4())",
    imports=("ErrorFeedback", "Int4"),
)
TWO_BIT = Coded(
    name="two_bit",
    kind="dense",
    bits=2,
    block=256,
    codec_s_per_parameter=6.4e-9,
    penalty=0.001,
    recipe="ErrorFeedback(codec=TwoBit())",
    imports=("ErrorFeedback", "TwoBit"),
)
TOP_K = Coded(
    name="topk",
    kind="gathered",
    bits=2,
    chunk=4096,
    k=64,
    codec_s_per_parameter=7.3e-9,
    penalty=0.102,
    recipe="ErrorFeedback(codec=TopK(chunk=4096, k=64, bits=2), beta=0.95)",
    imports=("ErrorFeedback", "TopK"),
)

CODECS = (FP32, INT8, INT4, TWO_BIT, TOP_K)
USUAL = (FP32, INT8, INT4, TWO_BIT)
"""What is planned unless codecs are named."""
