"""Eager torch: the specification in code."""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.sign.reference import pack_bits, unpack_bits


def _majority(words: Tensor, numel: int, tie_peer: int) -> Tensor:
    """bool [numel]."""
    bits = torch.stack([unpack_bits(row, numel) for row in words])
    twice = 2 * bits.sum(dim=0)
    return (twice > len(words)) | ((twice == len(words)) & bits[tie_peer])


def vote(words: Tensor, out: Tensor, *, tie_peer: int) -> None:
    """Fill `out`."""
    pack_bits(_majority(words, 8 * out.numel(), tie_peer), out)


def vote_apply(words: Tensor, target: Tensor, *, step: float, tie_peer: int) -> None:
    """Move `target`."""
    move = torch.full_like(target, step)
    target.add_(torch.where(_majority(words, target.numel(), tie_peer), move, -move))
