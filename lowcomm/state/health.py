"""The health of a network of islands that exchange with neighbours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Health:
    """What is left of it, for metrics and reports."""

    components: int
    """Connected parts among the islands that are there, over many rounds where neighbours change."""
    spectral_gap: float
    """Of mixing among them, 0 to 1; 0 with several components."""
    there: int
    """Islands that are there."""
