"""Llama shapes by name. Parameter counts are for the byte vocabulary (260) and tied embeddings, 1b untied at 32,000."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama shape: sizes in elements."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int


SHAPES = {
    "nano": Shape(hidden=64, layers=2, heads=4, kv_heads=4, intermediate=172),
    "tiny": Shape(hidden=128, layers=4, heads=4, kv_heads=4, intermediate=344),
    "3m": Shape(hidden=192, layers=6, heads=6, kv_heads=6, intermediate=512),
    "30m": Shape(hidden=512, layers=9, heads=8, kv_heads=8, intermediate=1376),
    "150m": Shape(hidden=896, layers=14, heads=14, kv_heads=14, intermediate=2432),
    "1b": Shape(hidden=2048, layers=20, heads=16, kv_heads=16, intermediate=5504),
}


def widened(shape: Shape, width: int) -> Shape:
    """The shape at another hidden width: same layers and heads, the feed-forward in proportion (multiples of 4)."""
    intermediate = max(4, round(shape.intermediate * width / shape.hidden / 4) * 4)
    return replace(shape, hidden=width, intermediate=intermediate)
