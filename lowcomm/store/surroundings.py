"""What an island takes from outside, and the phases that it goes through."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


class Phase(enum.Enum):
    """What an island does next."""

    HEAL = "heal"
    JOIN = "join"
    MEMBER = "member"
    DONE = "done"


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Name, clock and randomness: handed in, so that a checker decides what happens when."""

    name: str
    """A label: two processes of one name are two members."""
    clock: Callable[[], float]
    """Monotonic seconds of one's own."""
    draw: Callable[[], str]
    """128 random bits in hex: incarnations and nonces."""
    wall: Callable[[], str] = lambda: ""
    """Wall time for people."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Versions and hardware, for people."""
