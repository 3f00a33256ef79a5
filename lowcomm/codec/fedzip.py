"""FedZip: top-z entries, their values as a few centroids, both entropy-coded.

Malekijoo et al., FedZip, arXiv 2102.01593.

    I = the z n entries of largest |x_i|,   c = k-means of {x_i : i in I},   x_i is decoded as c_{a_i} for i in I

x: the Delta as one flat vector, fp32 [n]; z: k / chunk, as an exact top-k per chunk; c: `clusters` centroids, fp32,
by Lloyd's iteration on the sorted values; a_i: the nearest centroid's number. Coded with `coder`, for real: the gaps
between indices (all but their low bits, which are as good as random) and the a_i.
Body: uint32 low bits of a gap, number of centroids, bytes of the gaps' code; centroids fp32; the gaps' code, the gaps'
low bits, the a_i's code.
Cost: 64 + 12 + 4 clusters + two tables (4 B per symbol that occurs) + about z n (log2(e / z) + H(a)) / 8 B per payload,
H the entropy in bits; n - 1 payloads each way for n islands; sizes are exchanged first, 8 B.
Raises: PayloadError for NaN or infinity, naming the tensor, and for a payload that it can't have made; ConfigError,
also where constriction is missing.
Deviates: one code and one set of centroids for the whole vector where the paper has them per layer; ANS unless told.
Reduces to: the identity for k = chunk and at least as many clusters as distinct values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from lowcomm_kernels.errors import NonFiniteError
from lowcomm_kernels.topk import Chunks, topk
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.base import Codec, State
from lowcomm.codec.elias_fano import pack_bits
from lowcomm.codec.entropy import Coder, decode_symbols, encode_symbols, require_constriction
from lowcomm.codec.flat import count, device_of, flatten, non_finite, unflatten
from lowcomm.codec.sparse import check_chunk, places_of
from lowcomm.types import Delta, Payload, PayloadError, Round, require

HEAD_BYTES = 12
MOST_GAPS = 512
"""Gap symbols at most, so that a table stays small."""
MOST_STEPS = 50
"""Lloyd iterations at most."""


@dataclass(frozen=True, kw_only=True)
class FedZip(Codec):
    """Top-k with centroids, entropy-coded: about 0.15 bits per parameter with 64 of 4096 and 4 clusters."""

    chunk: int = 4096
    """Elements of the flat vector that compete with each other, 1 to 65536."""
    k: int = 64
    """Entries kept of each chunk, 1 to `chunk`; a short last chunk keeps the same share."""
    clusters: int = 8
    """Centroids that values are rounded to, 1 to 256."""
    coder: Coder = "ans"
    """ans: within 1 % of the entropy and fast; huffman: the paper's, whole bits per symbol, about 1e6 symbols per s."""

    linear: ClassVar[bool] = False
    fixed_size: ClassVar[bool] = False

    def init(self, like: Delta) -> State:
        return {}

    def encode(self, delta: Delta, state: State, round: Round) -> tuple[Payload, State]:
        chunks = Chunks(count(delta), self.chunk, self.k)
        try:
            kept = topk(flatten(delta), chunks)
        except NonFiniteError as error:
            raise non_finite(delta, error.index) from error
        centroids, nearest = k_means(kept.values.cpu().numpy(), self.clusters)
        gaps = to_gaps(kept.indices.cpu().numpy().astype(np.int64), chunks)
        low = max(0, int(gaps.max(initial=0)).bit_length() - MOST_GAPS.bit_length() + 1)
        high = encode_symbols(gaps >> low, self.coder)
        shifts = np.arange(low, dtype=np.int64)
        tail = pack_bits(((gaps[:, None] >> shifts) & 1).astype(np.uint8).reshape(-1)).tobytes()
        head = np.array([low, len(centroids), len(high)], dtype="<u4").tobytes()
        body = head + centroids.astype("<f4").tobytes() + high + tail + encode_symbols(nearest, self.coder)
        data = torch.frombuffer(bytearray(body), dtype=torch.uint8)
        return wire.pack(wire.CodecId.FEDZIP, delta, round, data.to(device_of(delta))), state

    def decode(self, payload: Payload, like: Delta, round: Round | None = None) -> Delta:
        places, values = self._read(payload, like, round)
        flat = torch.zeros(count(like), device=device_of(like))
        flat[places] = values
        return unflatten(flat, like)

    def check(self) -> None:
        check_chunk(self.chunk, self.k)
        require(1 <= self.clusters <= 256, "codec.clusters", self.clusters, "1 to 256", "8 suits most")
        require(self.coder in ("ans", "huffman"), "codec.coder", self.coder, "ans or huffman", "ans is smaller")
        require_constriction()

    def _read(self, payload: Payload, like: Delta, round: Round | None) -> tuple[Tensor, Tensor]:
        body = bytes(wire.unpack(payload, wire.CodecId.FEDZIP, like, round).cpu().numpy())
        chunks, device = Chunks(count(like), self.chunk, self.k), payload.data.device
        if len(body) < HEAD_BYTES:
            raise PayloadError(f"the payload's body has {len(body)} bytes, its lengths alone need {HEAD_BYTES}")
        low, clusters, high_bytes = np.frombuffer(body, "<u4", 3).tolist()
        tail_bytes = -(-chunks.kept * low // 8)
        first = HEAD_BYTES + 4 * clusters
        if low > 16 or clusters > self.clusters or first + high_bytes + tail_bytes > len(body):
            raise PayloadError("the payload's lengths do not fit each other or its settings")
        centroids = np.frombuffer(body, "<f4", clusters, HEAD_BYTES).astype(np.float32)
        if not np.isfinite(centroids).all():
            raise PayloadError("the payload holds a centroid that is NaN or infinite")
        second = first + high_bytes
        gaps = decode_symbols(body[first:second], chunks.kept, MOST_GAPS, self.coder) << low
        bits = np.unpackbits(np.frombuffer(body, np.uint8, tail_bytes, second), bitorder="little")
        if bits[chunks.kept * low :].any():
            raise PayloadError("the unused bits of the payload's gaps are not 0")
        weights = np.int64(1) << np.arange(low, dtype=np.int64)
        gaps |= (bits[: chunks.kept * low].reshape(chunks.kept, low) * weights).sum(axis=1, dtype=np.int64)
        nearest = decode_symbols(body[second + tail_bytes :], chunks.kept, clusters, self.coder)
        indices = torch.from_numpy(from_gaps(gaps, chunks).astype(np.uint16))
        return places_of(indices, chunks).to(device), torch.from_numpy(centroids[nearest]).to(device)


def to_gaps(indices: np.ndarray, chunks: Chunks) -> np.ndarray:
    """int64 [kept]: how many entries of the chunk were passed over before each kept one."""
    gaps, at = np.empty_like(indices), 0
    for _, number, _, k in chunks.parts():
        rows = indices[at : at + number * k].reshape(number, k)
        gaps[at : at + number * k] = (np.diff(rows, axis=1, prepend=-1) - 1).reshape(-1)
        at += number * k
    return gaps


def from_gaps(gaps: np.ndarray, chunks: Chunks) -> np.ndarray:
    """The way back. Raises PayloadError for gaps that leave their chunk."""
    indices, at = np.empty_like(gaps), 0
    for _, number, length, k in chunks.parts():
        rows = (gaps[at : at + number * k].reshape(number, k) + 1).cumsum(axis=1) - 1
        if rows.size and rows[:, -1].max() >= length:
            raise PayloadError("the payload's gaps leave their chunk")
        indices[at : at + number * k] = rows.reshape(-1)
        at += number * k
    return indices


def k_means(values: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroids (fp32, ascending, at most `clusters`) and the number of each value's own (int64 [m]).

    Starts at equal shares of the sorted values. In one dimension a cluster is a stretch of them, so that a step needs
    sums of stretches only; they are differences of one fp64 cumulative sum, the same for any number of threads.
    """
    if len(values) == 0:
        return np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64)
    order = np.sort(values.astype(np.float64))
    distinct = np.unique(order)
    if len(distinct) <= clusters:
        centroids = distinct
    else:
        sums = np.concatenate([[0.0], np.cumsum(order)])
        centroids = np.unique(order[(np.arange(clusters) * 2 + 1) * len(order) // (2 * clusters)])
        for _ in range(MOST_STEPS):
            ends = np.concatenate([[0], _bounds(order, centroids), [len(order)]])
            sizes = np.diff(ends)
            means = np.diff(sums[ends])[sizes > 0] / sizes[sizes > 0]
            if np.array_equal(means, centroids):
                break
            centroids = means
    # np.unique: rounding to fp32 may join two, and a difference of cumulative sums may swap two by a rounding error
    found = np.unique(centroids.astype(np.float32))
    middles = (found[1:].astype(np.float64) + found[:-1]) / 2
    return found, np.searchsorted(middles, values.astype(np.float64)).astype(np.int64)


def _bounds(order: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return np.searchsorted(order, (centroids[1:] + centroids[:-1]) / 2)
