"""Matrix products whose bits do not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Run what is inside with one thread of torch and its BLAS, which split sums over threads otherwise.

    A simulation and real processes have different numbers of threads and must send the same bytes. The number belongs
    to the process: a codec that uses this says so (`Codec.sets_threads`), and does not run beside training on several.
    """
    before = torch.get_num_threads()
    if before == 1:  # setting it, even to the same, is not local to this thread
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
