"""Compiles the kernels that codecs use, so that workers and ranks which start at once find them in numba's cache.

    python -m tests.support.compile_kernels

make test runs it once per checkout, beside the type check.
"""

from __future__ import annotations

import torch

from lowcomm.transport import Simulated
from tests.golden_rounds import ISLANDS, loops


def main() -> None:
    """A few rounds with every codec."""
    torch.set_num_threads(1)
    for loop in loops().values():
        if loop.settings.get("codec") is not None:
            loop(Simulated(ISLANDS))


if __name__ == "__main__":
    main()
