"""What ranks leave in their private directory for whoever started them, who reads it without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

GOES_ON = "goes on"
"""A file that is there where the run goes on when an island is lost."""
MEMBERS = "members"
"""Files `members N`: the ranks that went on, as JSON, after the N-th loss."""


def left_behind(directory: Path, ranks: int) -> set[int]:
    """Ranks that the others have left behind, dead or frozen."""
    number, members = 0, set[int]()
    while (path := directory / f"{MEMBERS} {number + 1}").exists():
        number += 1
        members = set(json.loads(path.read_text(encoding="utf-8")))
    return set(range(ranks)) - members if number else set()


def lost_of(ended: Mapping[int, int], directory: Path) -> dict[int, int]:
    """Of ranks that ended with a code other than 0 those without which the others go on."""
    if not (directory / GOES_ON).exists():
        return {}
    behind = left_behind(directory, max(ended) + 1)
    return {rank: code for rank, code in ended.items() if code < 0 or rank in behind}
