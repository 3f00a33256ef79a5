"""A small disk for a store, to be filled for a while: a tmpfs of its own, where this user may mount one."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

from lowcomm.private_files import make_directory

SIZE_MB = 96
BALLAST = ".ballast"
CHUNK = bytes(1 << 20)


class SmallDisk:
    """`mount` says why not where there can be none; then a full disk is injected instead."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mounted = False

    def mount(self) -> str | None:
        """None: it is there, and empty; else the reason why it is not."""
        make_directory(self.path)
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=0700", "lowcomm-chaos", str(self.path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            return str(error)
        self.mounted = done.returncode == 0
        return None if self.mounted else done.stderr.strip()

    def fill(self) -> None:
        """Leave no room at all."""
        with contextlib.suppress(OSError), (self.path / BALLAST).open("ab", buffering=0) as file:
            while file.write(CHUNK) == len(CHUNK):
                pass

    def free(self) -> None:
        """Make room again."""
        (self.path / BALLAST).unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it; what it held goes to a plain directory in its place."""
        if not self.mounted:
            return
        self.free()
        kept = self.path.with_name(self.path.name + "-kept")
        shutil.copytree(self.path, kept)
        subprocess.run(["umount", str(self.path)], check=False, capture_output=True)
        self.mounted = False
        self.path.rmdir()
        kept.rename(self.path)
