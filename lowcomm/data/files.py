"""Finds the local files of a glob, each once, with names that do not depend on the current directory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path

from lowcomm.data.errors import bad


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Files of a glob."""

    files: list[tuple[str, Path]]
    """(name relative to the folder above the first wildcard, path), sorted by name."""
    links_left_out: int
    """Symbolic links that lead to nothing, into a cycle, or to a file or folder that was read already."""


def root_of(pattern: str) -> Path:
    """The folder above the first wildcard: paths relative to it are equal on every machine."""
    parts = Path(pattern).expanduser().parts
    fixed = len(parts) - 1
    for i, part in enumerate(parts[:-1]):
        if has_magic(part) and not os.path.lexists(Path(*parts[: i + 1])):
            fixed = i
            break
    return Path(*parts[:fixed]) if fixed > 0 else Path()


def matched(pattern: str) -> Matched:
    """Files of the glob; `**` goes into folders, also through links, and a name with brackets may be meant as it is.

    Raises ConfigError when nothing matches, or for a folder that cannot be read.
    """
    path, root = Path(pattern).expanduser(), root_of(pattern)
    found, left_out = _expand(root, path.parts[len(root.parts) :])
    real: dict[Path, Path] = {}
    top = root.resolve()

    def linked(match: Path) -> bool:
        return match.resolve() != top / match.relative_to(root)

    for match in sorted(found, key=lambda match: (linked(match), match.as_posix())):  # no link before its target
        if match.is_file() and match.resolve() not in real:
            real[match.resolve()] = match
        elif match.is_file() or (match.is_symlink() and not match.exists()):
            left_out += 1
    if not real:
        raise _nothing(pattern, path)
    files = sorted((match.relative_to(root).as_posix(), match) for match in real.values())
    return Matched(files=files, links_left_out=left_out)


def _nothing(pattern: str, path: Path) -> Exception:
    if path.is_dir():
        fix = f"it is a folder: use '{path.name}/**/*' with the ending of its files"
    else:
        fix = f"correct the pattern (it is looked up from {Path.cwd()}) or use '**' to go into folders"
    return bad("source.glob", pattern, "a pattern that matches one or more files", fix)


def _expand(root: Path, parts: Sequence[str]) -> tuple[set[Path], int]:
    """Paths below `root` that match, and how many links were left out on the way."""
    found, left_out = {root}, 0
    for i, part in enumerate(parts):
        matches: set[Path] = set()
        for folder in sorted(found):
            if part == "**":
                below, cut = _below(folder)
                left_out += cut
                matches.update(below)
                if i == len(parts) - 1:
                    matches.update(child for own in below for child in _children(own) if child.name[0] != ".")
            elif os.path.lexists(folder / part):  # spelled out, also where it has brackets
                matches.add(folder / part)
            elif has_magic(part) and folder.is_dir():
                matches.update(child for child in _children(folder) if _fits(child.name, part))
        found = matches
    return found, left_out


def _fits(name: str, pattern: str) -> bool:
    hidden = name.startswith(".") and not pattern.startswith(".")
    return not hidden and fnmatchcase(name, pattern)


def _children(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except OSError as error:
        fix = f"{error.strerror}: allow or leave out the folder"
        raise bad("source.glob", str(folder), "folders that can be read", fix) from error


def _below(top: Path) -> tuple[list[Path], int]:
    """`top` and the folders below it, each once, real ones before links to them; and how many links were left out."""
    if not top.is_dir():
        return [], 0
    seen = {top.resolve()}
    found: list[Path] = []
    waiting, links, left_out = [top], list[Path](), 0
    while waiting or links:
        if not waiting:
            link = links.pop(0)
            target = link.resolve()
            if target in seen or link.parent.resolve().is_relative_to(target):
                left_out += 1
                continue
            seen.add(target)
            waiting.append(link)
        folder = waiting.pop(0)
        found.append(folder)
        for child in _children(folder):
            if child.name.startswith(".") or not os.path.isdir(child):  # noqa: PTH112  # Path.is_dir raises for a loop
                continue
            if child.is_symlink():
                links.append(child)
            elif child.resolve() not in seen:
                seen.add(child.resolve())
                waiting.append(child)
    return found, left_out
