"""The L2 norm of many elements, as exact in fp32 as the elements are."""

from __future__ import annotations

import torch
from torch import Tensor

ROW = 16384
"""Elements whose squares are summed at once: torch's own sum over 3e7 equal elements is 1.8 % off on a CPU."""


def l2_norm(tensor: Tensor) -> Tensor:
    """The norm of a tensor of any shape, of its dtype, without a dimension; inf or NaN if any element is."""
    flat = tensor.flatten()
    rows = flat.numel() // ROW
    whole = torch.linalg.vector_norm(flat[: rows * ROW].view(rows, ROW), dim=1)
    rest = torch.linalg.vector_norm(flat[rows * ROW :])
    return torch.linalg.vector_norm(torch.cat((whole, rest[None])))
