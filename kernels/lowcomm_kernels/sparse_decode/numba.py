"""numba form of `sparse_decode`: a chunk of the output stays in cache while every peer is added to it."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from torch import Tensor

from lowcomm_kernels.topk.layout import Chunks, chunk_code_bytes
from lowcomm_kernels.topk.values_numba import decode_chunk


@njit(parallel=True, cache=True, fastmath=False, error_model="numpy")
def _sparse_decode(indices, codes, scales, weights, chunk, k, full, tail_k, size, bits, out, bad):
    jobs = bad.size
    count = full + (1 if tail_k else 0)
    for job in prange(jobs):
        values = np.empty(k, np.float32)
        for c in range(count * job // jobs, count * (job + 1) // jobs):
            part = out[c * chunk : (c + 1) * chunk]
            part[:] = 0
            keep = k if c < full else tail_k
            v = values[:keep]
            for peer in range(weights.size):
                word = np.int64(scales[peer, c]) if bits != 16 else np.int64(0)
                bad[job] |= np.uint8(not decode_chunk(codes[peer, c * size :], word, bits, v))
                chosen = indices[peer, c * k : c * k + keep]
                for i in range(keep):
                    if chosen[i] < part.size:
                        part[chosen[i]] += weights[peer] * v[i]
                    else:
                        bad[job] = 1


def sparse_decode(
    indices: Tensor, codes: Tensor, scales: Tensor, weights: Tensor, chunks: Chunks, bits: int, out: Tensor
) -> bool:
    """Fill `out`; False if an index leaves its chunk or a value is not finite."""
    bad = np.zeros(min(64, max(1, chunks.count)), np.uint8)
    shape = (chunks.chunk, chunks.k, chunks.full, chunks.tail_k, chunk_code_bytes(chunks.k, bits), bits)
    payloads = (indices.numpy(), codes.numpy(), scales.numpy(), weights.numpy())
    _sparse_decode(*payloads, *shape, out.numpy(), bad)
    return not bad.any()
