"""The linear algebra of PowerSGD: one warm-started power step per matrix, factors in order of their strength.

Its bits do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lowcomm.types import PayloadError


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


LEAST = 2.0**-100
"""A matrix of smaller entries counts as zero, so that subnormal arithmetic never decides a bit."""
CACHED = 1 << 17
"""Elements of a product that are summed at a time: result and scratch stay in the L2 cache."""


def power_step(matrix: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P [m, r], orthonormal columns; Q = matrix^T P [n, r], orthogonal columns, strongest first; their norms [r].

    matrix: fp32 [m, n]; q: fp32 [n, r], the Q of the last round. Raises PayloadError if a product overflows.
    """
    if max(-float(matrix.amin()), float(matrix.amax())) < LEAST:
        zeros = matrix.new_zeros
        return zeros(len(matrix), q.shape[1]), zeros(q.shape), zeros(q.shape[1])
    with one_thread():
        spread, _ = _scaled(matrix @ q)
        p = torch.linalg.qr(spread).Q
        turned = matrix.T @ p
        scaled, size = _scaled(turned)
        _, strength, v = torch.linalg.svd(torch.linalg.qr(scaled).R, full_matrices=False)
        strength = strength * size
        p, turned = (p @ v.T).contiguous(), (turned @ v.T).contiguous()
    _check(turned)
    return p, turned, strength


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / max |x| and max |x|: LAPACK adds squares, which would leave fp32. Raises PayloadError."""
    _check(x)
    size = x.abs().amax()
    return x / size.clamp(min=LEAST), size


def _check(product: Tensor) -> None:
    if not bool(product.isfinite().all()):
        raise PayloadError("the pseudo-gradient is too large: a factor overflows fp32")


def effective_rank(strength: Tensor, energy: float) -> int:
    """How many leading directions hold the share `energy` of the squared norm that all of them hold; at least 1."""
    squares = strength.double().square()
    total = float(squares.sum())
    if total == 0:
        return 1
    # cumsum is sequential, and a value on the bound may fall either way only between kinds of machine
    return min(len(squares), 1 + int((squares.cumsum(0) < energy * total).sum()))


def product(p: Tensor, q: Tensor, out: Tensor) -> None:
    """out = P Q^T, fp32 [m, n], column after column, product and sum rounded apart: the same bits everywhere."""
    rows = max(1, CACHED // max(1, out.shape[1]))
    scratch = torch.empty(rows, out.shape[1], device=out.device)
    for start in range(0, out.shape[0], rows):
        part = out[start : start + rows].zero_()
        for j in range(p.shape[1]):
            part.add_(torch.mul(p[start : start + rows, j : j + 1], q[:, j], out=scratch[: part.shape[0]]))
