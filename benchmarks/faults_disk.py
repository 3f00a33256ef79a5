"""A disk of a few megabytes that a run is to fill: tmpfs, which takes root to mount."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

SIZE_BYTES = 24_000_000
"""Room for the checkpoints of two nano islands, and not much beside them."""
FILLER = "something else"


def may_mount() -> bool:
    """Whether this process can have one."""
    return os.geteuid() == 0


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """Mount it at a directory, which is made; unmount it at the end."""
    place.mkdir(parents=True, exist_ok=True)
    options = f"size={SIZE_BYTES},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "lowcomm-faults", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> None:
    """Write to it until nothing more fits."""
    with contextlib.suppress(OSError), (place / FILLER).open("wb", buffering=0) as file:
        while file.write(bytes(65536)):
            pass


def make_room(place: Path) -> None:
    """Take away what `fill` wrote."""
    (place / FILLER).unlink(missing_ok=True)
