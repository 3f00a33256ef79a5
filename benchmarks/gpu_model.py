"""The Llama shapes of lowcomm's presets in plain torch, so that a machine with a GPU needs no transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowcomm.model.presets import SHAPES, Shape

VOCABULARY = 260
"""Bytes and four special tokens, as lowcomm's own."""


class Block(nn.Module):
    """Attention and a gated feed-forward, each behind a norm. Names have layers' numbers, for fragments."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.first, self.second = nn.RMSNorm(shape.hidden), nn.RMSNorm(shape.hidden)
        self.qkv = nn.Linear(shape.hidden, 3 * shape.hidden, bias=False)
        self.out = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.gate_up = nn.Linear(shape.hidden, 2 * shape.intermediate, bias=False)
        self.down = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, hidden = x.shape
        q, k, v = self.qkv(self.first(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, hidden))
        gate, up = self.gate_up(self.second(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    """Token ids [batch, length] -> the mean loss of predicting each next one, without positions: this is for time."""

    def __init__(self, preset: str) -> None:
        super().__init__()
        shape = SHAPES[preset]
        self.embedding = nn.Embedding(VOCABULARY, shape.hidden)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids[:, :-1])
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def text(batch_size: int, length: int, seed: int, device: torch.device) -> Tensor:
    """Random ids [batch_size, length + 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (batch_size, length + 1), generator=generator).to(device)
