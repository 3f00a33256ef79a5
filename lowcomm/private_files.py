"""Files and directories that only their owner can read, whatever the umask: what holds keys, weights or losses."""

from __future__ import annotations

from pathlib import Path

DIRECTORY_MODE, FILE_MODE = 0o700, 0o600


def make_directory(path: Path) -> None:
    """Make a directory and those above it that are missing; one that is there keeps its mode. Raises OSError."""
    missing = [place for place in (path, *path.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        place.chmod(DIRECTORY_MODE)  # a umask may have taken the owner's rights


def protect(path: Path) -> None:
    """Take a file's rights from all but its owner. Raises OSError."""
    path.chmod(FILE_MODE)
