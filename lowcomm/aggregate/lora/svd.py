"""The best rank-r approximation of a stacked product, by QR of both factors and an SVD of an R x R matrix.

    B = Q_b R_b,  A^T = Q_a R_a,  R_b R_a^T = U S V^T  =>  B A = (Q_b U) S (Q_a V)^T

Cost: O((out + in) R^2 + R^3) for R = sum_k r_k; the out x in matrix is never made. fp64, since QR of nearly equal
factors loses digits in fp32. The signs, which an SVD leaves open, are fixed: the largest entry of each left vector is
positive.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm.aggregate.lora.adapter import Product


def truncated(product: Product, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors [out, rank], singular values [rank] in descending order, right vectors [rank, in]; fp64.

    Zeros follow where the product has a lower rank.
    """
    q_b, r_b = torch.linalg.qr(product.b.double())
    q_a, r_a = torch.linalg.qr(product.a.double().T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)
    left, right = q_b @ u[:, : len(s)], vh[: len(s)] @ q_a.T
    kept = min(rank, len(s))
    left, s, right = left[:, :kept], s[:kept], right[:kept]
    largest = left.gather(0, left.abs().argmax(dim=0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(left.dtype)
    left, right = left * sign, right * sign.T
    if kept < rank:
        more = rank - kept
        left = torch.cat([left, left.new_zeros(left.shape[0], more)], dim=1)
        right = torch.cat([right, right.new_zeros(more, right.shape[1])])
        s = torch.cat([s, s.new_zeros(more)])
    return left, s, right
