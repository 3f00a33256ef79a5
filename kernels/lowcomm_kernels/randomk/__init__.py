"""Which entries are shared when no indices are sent: random ones from a shared seed, or a window that rotates.

`random_indices`: every chunk of n elements is cut into k strata `[floor(i n / k), floor((i + 1) n / k))`, one entry is
drawn in each, and all are rotated by one random offset. So there are always exactly k distinct entries, and each
element is kept with probability k / n (relative error at most 2**-16): the expected squared error is that of k drawn
freely (random masks of Konecny et al. 2016, arXiv 1610.05492). Entry i of chunk c has Philox counter `c * k + i`: word
0 draws in the stratum, word 1 of entry 0 is the offset; both as `word * range >> 32`.

`window_indices`: the k entries from `turn * k mod n` on, around the end (PSO-Fed, arXiv 2110.13607). After ceil(n / k)
turns every entry has been shared. Give each island its own turn (round + island) to share different parts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.dispatch import Path, check_flat, choose_path, output, use_threads
from lowcomm_kernels.philox import signed_seed
from lowcomm_kernels.randomk import reference
from lowcomm_kernels.topk.layout import Chunks

_CPU = torch.device("cpu")


def random_indices(
    chunks: Chunks, *, seed: int, device: torch.device = _CPU, path: Path | None = None, out: Tensor | None = None
) -> Tensor:
    """uint16 [chunks.kept], ascending in each chunk; `seed` (0 <= seed < 2**64) must differ by round and tensor.

    Raises:
        ValueError: seed outside its range.
    """
    key = signed_seed(seed)
    indices = output("out", out, chunks.kept, torch.uint16, device)
    chosen = choose_path(device, path)
    if chosen == "numba":
        from lowcomm_kernels.randomk import numba

        use_threads()
        numba.random_indices(chunks, key, indices)
    elif chosen == "triton":
        from lowcomm_kernels.randomk import triton

        triton.random_indices(chunks, key, indices)
    else:
        reference.random_indices(chunks, seed, indices)
    return indices


def window_indices(
    chunks: Chunks, *, turn: int, device: torch.device = _CPU, path: Path | None = None, out: Tensor | None = None
) -> Tensor:
    """uint16 [chunks.kept], ascending in each chunk: the window of turn `turn` (0 <= turn < 2**40).

    Raises:
        ValueError: turn outside its range.
    """
    if not 0 <= turn < 1 << 40:
        raise ValueError(f"turn={turn}: expected 0 <= turn < 2**40")
    indices = output("out", out, chunks.kept, torch.uint16, device)
    chosen = choose_path(device, path)
    if chosen == "numba":
        from lowcomm_kernels.randomk import numba

        use_threads()
        numba.window_indices(chunks, turn, indices)
    elif chosen == "triton":
        from lowcomm_kernels.randomk import triton

        triton.window_indices(chunks, turn, indices)
    else:
        reference.window_indices(chunks, turn, indices)
    return indices


def gather(
    x: Tensor, indices: Tensor, chunks: Chunks, *, path: Path | None = None, out: Tensor | None = None
) -> Tensor:
    """fp32 [chunks.kept]: the entries of `x` (fp32 [chunks.numel]) at `indices` (uint16 [chunks.kept]).

    Raises:
        ValueError: wrong shape or dtype, or an index outside its chunk.
    """
    check_flat("x", x, torch.float32, chunks.numel)
    check_flat("indices", indices, torch.uint16, chunks.kept)
    values = output("out", out, chunks.kept, torch.float32, x.device)
    chosen = choose_path(x.device, path)
    if chosen == "numba":
        from lowcomm_kernels.randomk import numba

        use_threads()
        ok = numba.gather(x, indices, chunks, values)
    else:
        # Plain indexing is one kernel on a GPU already.
        ok = reference.gather(x, indices, chunks, values)
    if not ok:
        raise ValueError("indices: one lies outside its chunk; they must come from the same numel, chunk and k")
    return values
