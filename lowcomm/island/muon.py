"""Muon as the inner optimizer, AdamW for what is no hidden matrix.

Papers: Muon (K. Jordan and others, 2024), Muon is Scalable for LLM Training (arXiv 2502.16982); inside DiLoCo: MuLoCo
(arXiv 2505.23725).
    m <- mu m + (1 - mu) g;  u = g + mu (m - g);  theta <- theta - lr (0.2 sqrt(max(rows, columns)) NS(u) + decay theta)
g is `p.grad` [rows, columns], m is `momentum_buffer` (same shape and dtype), NS the Newton-Schulz iteration in bf16
that brings singular values near 1. The scale is that of 2502.16982: AdamW's learning rate and decay serve both parts.
Embeddings, the output head, and everything that is not 2-D go to AdamW, as in the papers.
No bytes of its own: moments stay on their island. Raises ConfigError for a value out of range.
Deviates from MuLoCo: one learning rate for both parts, since an island has one schedule.
Reduces to: AdamW, for a model without hidden matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowcomm.island.combined import Combined
from lowcomm.island.inner import Inner, check_rates
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Muon(Inner):
    """Orthogonalised momentum for hidden matrices, AdamW for the rest."""

    shards = "spread"
    lr: float = 3e-3
    """Peak inner learning rate of both parts (no unit), on AdamW's scale."""
    momentum: float = 0.95
    """Decay mu of Muon's momentum, 0 <= momentum < 1."""
    beta1: float = 0.9
    """Decay of AdamW's first moment, 0 <= beta1 < 1."""
    beta2: float = 0.95
    """Decay of AdamW's second moment, 0 <= beta2 < 1."""
    weight_decay: float = 0.1
    """Decoupled weight decay on matrices, embeddings included (no unit)."""
    iterations: int = 5
    """Newton-Schulz iterations per step and matrix, 1 to 20."""

    def build(self, model: nn.Module) -> Optimizer:
        hidden, others = hidden_matrices(model)
        decayed, plain = [p for p in others if p.ndim >= 2], [p for p in others if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        parts: list[Optimizer] = []
        if hidden:
            parts.append(
                torch.optim.Muon(
                    hidden,
                    lr=self.lr,
                    momentum=self.momentum,
                    weight_decay=self.weight_decay,
                    ns_steps=self.iterations,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if others:
            used = [g for g in groups if g["params"]]
            parts.append(torch.optim.AdamW(used, lr=self.lr, betas=(self.beta1, self.beta2), fused=True))
        return Combined(parts)

    def check(self) -> None:
        decays = {"momentum": self.momentum, "beta1": self.beta1, "beta2": self.beta2}
        check_rates(self.lr, decays, self.weight_decay)
        n = self.iterations
        require(1 <= n <= 20, "inner.optimizer.iterations", n, "1 to 20", "5 is usual")


def hidden_matrices(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Trainable parameters that are matrices between embedding and head, and all others.

    A head is known by `get_output_embeddings`, which transformers' models have.
    """
    outer = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # pyright: ignore[reportCallIssue]
    if isinstance(head, nn.Module):
        outer += list(head.parameters())
    known = {id(p) for p in outer}
    hidden: list[Tensor] = []
    others: list[Tensor] = []
    for p in model.parameters():
        if p.requires_grad:
            (hidden if p.ndim == 2 and id(p) not in known else others).append(p)
    return hidden, others
