"""Thread count of numba, set without touching torch's."""

from __future__ import annotations

import torch

from lowcomm_kernels import dispatch


def use_threads() -> int:
    """`dispatch.use_threads`, with torch's thread count as it was before.

    Numba's OpenMP pool starts with `omp_set_num_threads(all cores)` in the process-wide libgomp that torch shares. Left
    like that, torch would go on with more threads than the user set, and sums would change their last bits.
    """
    wanted = torch.get_num_threads()
    count = dispatch.use_threads()
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)
    return count
