"""The r x r core of Fed-SB and LoRA-XS in the place of LoRA's B: B R with a frozen B.

Singhal et al., Fed-SB, arXiv 2502.15436; Bałazy et al., LoRA-XS, arXiv 2405.17604. peft has neither.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class SmallCore(nn.Module):
    """x [..., r] -> x R^T B^T [..., out]; basis B [out, r] frozen, core R [r, r] trainable, zero at first."""

    def __init__(self, basis: Tensor) -> None:
        super().__init__()
        self.basis = nn.Parameter(basis.contiguous(), requires_grad=False)
        self.core = nn.Parameter(torch.zeros(basis.shape[1], basis.shape[1], dtype=basis.dtype))
        self.bias = None

    @property
    def weight(self) -> Tensor:
        """B R [out, r]: what peft merges."""
        return self.basis @ self.core

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.core), self.basis)


def effective_factors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's tensors with each basis and core as the B that they make: B R [out, r], a plain LoRA."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        stem, _, last = name.rpartition(".")
        if last == "basis" and f"{stem}.core" in state:
            found[f"{stem}.weight"] = value @ state[f"{stem}.core"]
        elif not (last == "core" and f"{stem}.basis" in state):
            found[name] = value
    return found
