"""Local files of a glob, with names that do not depend on the current directory."""

from __future__ import annotations

from glob import glob, has_magic
from pathlib import Path

from lowcomm.data.errors import bad


def root_of(pattern: str) -> Path:
    """The folder above the first wildcard: paths relative to it are equal on every machine."""
    path = Path(pattern).expanduser()
    parts = path.parts
    fixed = next((i for i, part in enumerate(parts) if has_magic(part)), len(parts) - 1)
    return Path(*parts[:fixed]) if fixed > 0 else Path()


def matched(pattern: str) -> list[tuple[str, Path]]:
    """Files of the glob (`**` goes into folders) as (relative name, path), sorted by name.

    Raises ConfigError when nothing matches.
    """
    root = root_of(pattern)
    paths = [Path(p) for p in glob(str(Path(pattern).expanduser()), recursive=True)]  # noqa: PTH207  # Path.glob takes no absolute pattern
    files = sorted((path.relative_to(root).as_posix(), path) for path in paths if path.is_file())
    if not files:
        raise bad(
            "source.glob",
            pattern,
            "a pattern that matches one or more files",
            f"correct the pattern (it is looked up from {Path.cwd()}) or use '**' to go into folders",
        )
    return files


def read_bytes(path: Path) -> bytes:
    """Raises ConfigError for a file that cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise bad("source.glob", str(path), "readable files", f"{error.strerror}: allow or remove the file") from error
