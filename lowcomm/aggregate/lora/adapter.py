"""Adapters as values: dW = scale * B A, and sums of such products that are never written out as a matrix.

Shapes: A [r, in], B [out, r], fp32 (any float dtype is taken). Norms, distances and errors come from r x r products
in fp64: ||sum_k B_k A_k||^2 = sum_ij <B_i^T B_j, A_i A_j^T>, so that a large layer costs what its rank does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One client's LoRA of one layer. `Conv1D` and embeddings differ only where dW is added to a weight."""

    a: Tensor
    """[r, in]."""
    b: Tensor
    """[out, r]."""
    scale: float
    """alpha / r, or alpha / sqrt(r) with rsLoRA."""

    def __post_init__(self) -> None:
        ok = self.a.dim() == 2 and self.b.dim() == 2 and self.a.shape[0] == self.b.shape[1]
        legal = "A [r, in] and B [out, r] of one rank r"
        require(ok, "adapter", (tuple(self.a.shape), tuple(self.b.shape)), legal, "pass the factors of one layer")

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]

    @property
    def product(self) -> Product:
        """dW with the scale in B."""
        return Product(b=self.b * self.scale, a=self.a)

    def cut(self, rank: int) -> Adapter:
        """The first `rank` rows of A and columns of B, or zeros after them if it has fewer."""
        more = rank - self.rank
        if more <= 0:
            return replace(self, a=self.a[:rank], b=self.b[:, :rank])
        a = torch.cat([self.a, self.a.new_zeros(more, self.a.shape[1])])
        return replace(self, a=a, b=torch.cat([self.b, self.b.new_zeros(self.b.shape[0], more)], dim=1))

    def at_scale(self, scale: float) -> Adapter:
        """The same dW under another scale: B takes the difference."""
        return self if scale == self.scale else Adapter(a=self.a, b=self.b * (self.scale / scale), scale=scale)

    def nbytes(self, *, a: bool = True, b: bool = True) -> int:
        """Bytes of the factors in fp32."""
        return 4 * (self.a.numel() * a + self.b.numel() * b)


@dataclass(frozen=True, kw_only=True)
class Product:
    """B A with B [out, R] and A [R, in]: a matrix of rank R at most, kept as its factors."""

    b: Tensor
    a: Tensor

    def __sub__(self, other: Product) -> Product:
        return Product(b=torch.cat([self.b, -other.b], dim=1), a=torch.cat([self.a, other.a]))

    def __add__(self, other: Product) -> Product:
        return Product(b=torch.cat([self.b, other.b], dim=1), a=torch.cat([self.a, other.a]))

    def norm(self) -> float:
        """Frobenius norm."""
        a, b = self.a.double(), self.b.double()
        return math.sqrt(max(0.0, float(((b.T @ b) * (a @ a.T)).sum())))

    def matrix(self, *, transposed: bool = False) -> Tensor:
        """The change of a weight [out, in], or [in, out] where the layer keeps it `transposed` (Conv1D, embeddings)."""
        return self.a.T @ self.b.T if transposed else self.b @ self.a

    @property
    def nbytes(self) -> int:
        """Bytes of the factors in fp32."""
        return 4 * (self.a.numel() + self.b.numel())


def target(adapters: Sequence[Adapter], weights: Sequence[float]) -> Product:
    """What should be aggregated: sum_k p_k s_k B_k A_k, stacked, rank sum_k r_k. Clients of weight 0 are left out."""
    used = [(x, p) for x, p in zip(adapters, weights, strict=True) if p != 0]
    return Product(
        b=torch.cat([x.b * (p * x.scale) for x, p in used], dim=1),
        a=torch.cat([x.a for x, _ in used]),
    )


def mean_factors(adapters: Sequence[Adapter], weights: Sequence[float], rank: int, scale: float) -> Adapter:
    """(sum_k p_k A_k, sum_k p_k B_k) at one rank (filled up with zeros) and scale, product and sum rounded apart."""
    even = [x.at_scale(scale).cut(rank) for x in adapters]
    a, b = even[0].a * weights[0], even[0].b * weights[0]
    for x, p in zip(even[1:], weights[1:], strict=True):
        if p != 0:
            a, b = a + x.a * p, b + x.b * p
    return Adapter(a=a, b=b, scale=scale)


def inner(x: Adapter, y: Adapter) -> float:
    """<dW_x, dW_y> = s_x s_y tr((B_x^T B_y)(A_y A_x^T)), from r x r products."""
    left = x.b.double().T @ y.b.double()
    right = x.a.double() @ y.a.double().T
    return x.scale * y.scale * float((left * right).sum())


def distances(clients: Sequence[Sequence[Adapter]]) -> Tensor:
    """fp64 [n, n]: ||dW_i - dW_j||_F over all layers of clients i and j, for rules that compare clients (Krum, NNM).

    clients: one sequence of layers per client, in one order. Factors of equal dW may differ: only dW is compared.
    """
    n = len(clients)
    gram = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(i, n):
            gram[i, j] = gram[j, i] = sum(inner(x, y) for x, y in zip(clients[i], clients[j], strict=True))
    norms = gram.diagonal()
    return (norms[:, None] + norms[None, :] - 2 * gram).clamp(min=0).sqrt()


def relative_error(wanted: Product, got: Product) -> float:
    """||wanted - got||_F / ||wanted||_F; 0 if both are 0."""
    size, off = wanted.norm(), (wanted - got).norm()
    return off / size if size > 0 else (0.0 if off == 0 else math.inf)
