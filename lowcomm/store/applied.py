"""What a commit changed, for those who hold local weights, and for the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lowcomm.store.commit import Commit


@dataclass(frozen=True, kw_only=True)
class Change:
    """A fragment whose weights a commit changed. Vectors are fp32, flat, on the CPU; nobody writes to them."""

    fragment: int
    old: Tensor
    new: Tensor


@dataclass(frozen=True, kw_only=True)
class UsedOne:
    """A contribution as a commit used it."""

    inc: str
    seq: int
    fragment: int
    base: int
    tokens: int
    steps: int
    blocks: tuple[int, ...]
    norm: float
    weight: float
    staleness: int
    """Outer steps of the fragment since its base."""
    nbytes: int
    sections: Mapping[str, bytes] = field(default_factory=dict)
    """What hooks said beside the Delta."""


@dataclass(frozen=True, kw_only=True)
class Applied:
    """A commit that was applied."""

    version: int
    """That it led to."""
    commit: Commit | None
    """None: its bytes are nonsense."""
    why: str | None = None
    """Why it changed nothing but the version; None: it was valid."""
    changes: tuple[Change, ...] = ()
    used: tuple[UsedOne, ...] = ()
    departed: Mapping[int, Tensor] = field(default_factory=dict)
    """By fragment: the sum of what had departed from this island's weights and is in the global ones now."""
    nbytes: int = 0
    """Of the commit and of what it used."""
