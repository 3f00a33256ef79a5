"""Eigenvectors of small symmetric matrices, with the same bits on every machine: Jacobi's rotations in a fixed order.

Sums, products and square roots are rounded alike everywhere, LAPACK's blocks are not. O(n^3) a sweep in plain Python:
meant for tables of islands, n up to some tens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

SWEEPS = 60
Rows = list[list[float]]


def eigen(matrix: Sequence[Sequence[float]]) -> tuple[list[float], Rows]:
    """Eigenvalues from the largest down, and the unit vector of each, as rows. matrix: symmetric, n x n."""
    a = [list(row) for row in matrix]
    n = len(a)
    vectors = [[float(i == j) for j in range(n)] for i in range(n)]  # rows
    for _ in range(SWEEPS):
        size = math.sqrt(math.fsum(x * x for row in a for x in row))
        if math.sqrt(math.fsum(a[i][j] ** 2 for i in range(n) for j in range(n) if i != j)) <= 1e-15 * size:
            break
        for p in range(n - 1):
            for q in range(p + 1, n):
                _rotate(a, vectors, p, q)
    order = sorted(range(n), key=lambda i: (-a[i][i], i))
    return [a[i][i] for i in order], [vectors[i] for i in order]


def _rotate(a: Rows, vectors: Rows, p: int, q: int) -> None:
    """Make a[p][q] zero."""
    if a[p][q] == 0:
        return
    theta = (a[q][q] - a[p][p]) / (2 * a[p][q])
    t = math.copysign(1.0, theta) / (abs(theta) + math.sqrt(theta * theta + 1))
    c = 1 / math.sqrt(t * t + 1)
    s = t * c
    for k in range(len(a)):
        x, y = a[k][p], a[k][q]
        a[k][p], a[k][q] = c * x - s * y, s * x + c * y
    for k in range(len(a)):
        x, y = a[p][k], a[q][k]
        a[p][k], a[q][k] = c * x - s * y, s * x + c * y
    for k in range(len(a)):
        x, y = vectors[p][k], vectors[q][k]
        vectors[p][k], vectors[q][k] = c * x - s * y, s * x + c * y
