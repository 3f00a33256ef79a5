"""Checkpoints: one new directory per save and island, a manifest with SHA-256 written last, verified on load.

    checkpoints/ROUND/island-00000/{island,global}.safetensors  {island,global}.json  manifest.json

ROUND is 000040 after round 40; inside the next one, 000040-part1-2 is the second save of a run that was resumed once
and 000040-stop1 the save with which it stopped. What a failure saves says so in its manifests. Each island renames its
own directory into place, so that neither a shared file system nor a common clock is needed; a checkpoint counts if
every island's part is complete and all were written by the same process group (their manifests name one session). Of
islands with several ranks every rank saves its own part like an island of its own, numbered by its rank in the run.
Tensors are safetensors, everything else is JSON: loading executes no code. Directories have mode 0700 and
files 0600: an island's part may hold the key of its privacy noise.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from lowcomm.checkpoint_writing import FORMAT, Part, flush_directory, seal, write_part
from lowcomm.private_files import make_directory
from lowcomm.types import CheckpointError

NAME = re.compile(r"(\d{6,})(?:-stop(\d+)|-part(\d+)-(\d+))?")
UNUSABLE = "unusable"
"""A failure that would come again from the same state."""


def save(
    root: Path,
    name: str,
    island: int,
    parts: Mapping[str, Part],
    session: str,
    failure: str | None = None,
    lost: Sequence[int] = (),
) -> Path:
    """Write one island's parts as checkpoint `name` under `root`; returns its directory.

    session: equal on all islands, new after each resume, so that parts of two attempts are never mixed.
    failure: what kind of failure made this island save; None: it is healthy. lost: islands that have no part in it.
    Raises CheckpointError (disk full, read-only, ...); earlier checkpoints are then as they were.
    """
    (made,) = save_all(root, name, [(island, parts)], session, failure, lost)
    return made


def save_all(
    root: Path,
    name: str,
    islands: Iterable[tuple[int, Mapping[str, Part]]],
    session: str,
    failure: str | None = None,
    lost: Sequence[int] = (),
    flush_each: bool = True,
) -> list[Path]:
    """`save` for several islands of one process; without `flush_each` all files go to the disk in one flush of it."""
    more: dict[str, Any] = {} if failure is None else {"failure": failure}
    more |= {"lost": list(lost)} if lost else {}
    partials: dict[int, Path] = {}
    try:
        for island, parts in islands:
            partials[island] = partial = root / f".partial-{name}-{island:05d}"
            shutil.rmtree(partial, ignore_errors=True)
            make_directory(partial)
            write_part(partial, parts, {"checkpoint": name, "island": island, "session": session}, more, flush_each)
        if not flush_each:
            os.sync()
        finals = [_publish(partial, _island_dir(root, name, island)) for island, partial in partials.items()]
        flush_directory(root / name)
        flush_directory(root)
    except (OSError, SafetensorError) as error:
        for partial in partials.values():
            shutil.rmtree(partial, ignore_errors=True)
        cause = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"checkpoint {name} of island {list(partials)[-1]} could not be written to {root}: {cause}. "
            "Earlier checkpoints are intact. Free some space or make the directory writable."
        ) from error
    return finals


def _publish(partial: Path, final: Path) -> Path:
    make_directory(final.parent)
    if final.exists():  # left by an attempt that not every island completed: its part is of no use
        shutil.rmtree(final)
    return partial.rename(final)


def names(root: Path) -> list[str]:
    """Checkpoint names under `root`, oldest first, complete or not."""
    found = [p.name for p in root.glob("*") if p.is_dir() and NAME.fullmatch(p.name)]
    return sorted(found, key=age)


def highest_stop(root: Path) -> int:
    """The highest number after "-stop" or "-part" in any name, complete or not; 0 if there is none."""
    return max((max(age(name)[1] - 1, 0) for name in names(root)), default=0)


def verified(root: Path, island: int) -> dict[str, str]:
    """Session by name of the checkpoints in which this island's part is whole (SHA-256 matches), oldest first."""
    whole = [name for name in names(root) if _problem(root, name, island) is None]
    return {name: read_manifest(_island_dir(root, name, island))["session"] for name in whole}


def newest_problem(root: Path, island: int) -> str | None:
    """What is wrong with this island's part of the newest checkpoint that has one; None: there is no part."""
    held = [name for name in names(root) if _island_dir(root, name, island).exists()]
    return _problem(root, held[-1], island) if held else None


def failures(root: Path, island: int) -> dict[str, str]:
    """Kind of failure by name of the checkpoints whose part of this island a failure saved."""
    found = {name: failure_of(_island_dir(root, name, island)) for name in names(root)}
    return {name: failure for name, failure in found.items() if failure is not None}


def lost(root: Path) -> dict[str, frozenset[int]]:
    """By name of the checkpoints that were saved without some islands, as they were lost: these islands."""
    found: dict[str, frozenset[int]] = {}
    for name in names(root):
        said = [manifest.get("lost", []) for manifest in _manifests(root / name)]
        if any(said):
            found[name] = frozenset(k for islands in said for k in islands)
    return found


def first_part(root: Path, name: str, lost: Collection[int]) -> int:
    """An island that has a part in a checkpoint. Raises CheckpointError if none lies here."""
    numbers = sorted(int(path.name.removeprefix("island-")) for path in (root / name).glob("island-*"))
    there = [k for k in numbers if k not in lost]
    if not there:
        raise CheckpointError(
            f"checkpoint {name} was saved without islands {sorted(lost)}, and no other island's part lies in {root}. "
            "Fix: copy the checkpoint of another machine there, then pass --resume auto"
        )
    return there[0]


def _manifests(directory: Path) -> list[dict[str, Any]]:
    """Those of a checkpoint that can be read."""
    found: list[dict[str, Any]] = []
    for island in sorted(directory.glob("island-*")):
        with suppress(OSError, ValueError, RecursionError):
            if isinstance(manifest := read_manifest(island), dict):
                found.append(manifest)
    return found


def failure_of(directory: Path) -> str | None:
    """The kind of failure that saved an island's part; None: none did, or it can't be read."""
    try:
        failure = read_manifest(directory).get("failure")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return failure if isinstance(failure, str) else None


def remove_partial(root: Path, island: int) -> None:
    """Remove what a save of this island left behind when its process was killed."""
    for path in root.glob(f".partial-*-{island:05d}"):
        shutil.rmtree(path, ignore_errors=True)


def load(root: Path, name: str, island: int) -> dict[str, Part]:
    """One island's parts, verified. The part "global" may lie with another island. Raises CheckpointError."""
    problem = _problem(root, name, island)
    if problem is not None:
        raise CheckpointError(problem)
    parts = _read(_island_dir(root, name, island))
    if "global" not in parts:
        for other in sorted((root / name).glob("island-*")):
            number = other.name.removeprefix("island-")
            whole = number.isdecimal() and _problem(root, name, int(number)) is None
            if whole and "global.json" in read_manifest(other)["files"]:
                parts["global"] = _read(other)["global"]
                return parts
        raise CheckpointError(f"checkpoint {name} in {root} has no global part that is whole")
    return parts


def remove(root: Path, name: str, islands: Sequence[int]) -> None:
    """Remove these islands' parts of a checkpoint, and its directory with the last part."""
    for island in islands:
        shutil.rmtree(_island_dir(root, name, island), ignore_errors=True)
    with suppress(OSError):
        (root / name).rmdir()


def age(name: str) -> tuple[int, int, float]:
    """By which names are in order: rounds; inside one 1 + the number of resumes, else 0; saves inside it.

    A stop is the last of these.
    """
    match = NAME.fullmatch(name)
    assert match is not None
    if match[3] is not None:
        return int(match[1]), 1 + int(match[3]), int(match[4])
    return (int(match[1]), 0, 0) if match[2] is None else (int(match[1]), 1 + int(match[2]), math.inf)


def _island_dir(root: Path, name: str, island: int) -> Path:
    return root / name / f"island-{island:05d}"


def read_manifest(directory: Path) -> dict[str, Any]:
    """Of an island's part. Raises OSError or ValueError."""
    return json.loads((directory / "manifest.json").read_text(encoding="utf-8"))


def _read(directory: Path) -> dict[str, Part]:
    stems = sorted({Path(file).stem for file in read_manifest(directory)["files"]})
    try:
        return {
            stem: (
                load_file(directory / f"{stem}.safetensors"),
                json.loads((directory / f"{stem}.json").read_text(encoding="utf-8")),
            )
            for stem in stems
        }
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{directory} is unreadable ({type(error).__name__}: {error})") from error


def _problem(root: Path, name: str, island: int) -> str | None:
    """What is wrong with an island's part, or None."""
    directory = _island_dir(root, name, island)
    try:
        for path in (directory.parent, directory, directory / "manifest.json"):
            if path.is_symlink():
                return f"{path} is a link: a checkpoint consists of plain files"
        manifest = read_manifest(directory)
        if manifest["format"] != FORMAT:
            return f"{directory} has format {manifest['format']}, this version reads {FORMAT}"
        if (manifest["checkpoint"], manifest["island"]) != (name, island):
            return f"{directory} is checkpoint {manifest['checkpoint']} of island {manifest['island']}: it was moved"
        if manifest["sha256"] != seal(manifest):
            return f"{directory / 'manifest.json'} is corrupt (its SHA-256 differs)"
        stems = {"island", *(Path(file).stem for file in manifest["files"])}
        if set(manifest["files"]) != {stem + suffix for stem in stems for suffix in (".safetensors", ".json")}:
            return f"{directory} lists other files than pairs NAME.safetensors and NAME.json"
        for file, facts in manifest["files"].items():
            problem = _file_problem(directory, file, facts)
            if problem is not None:
                return problem
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{directory} is incomplete or unreadable ({type(error).__name__})"
    return None


def _file_problem(directory: Path, file: str, facts: Mapping[str, Any]) -> str | None:
    if Path(file).name != file:
        return f"{directory} names the file {file!r} outside itself"
    path = directory / file
    if path.is_symlink() or not path.is_file():
        return f"{path} is missing or not a plain file"
    if path.stat().st_size != facts["bytes"] or _hash(path) != facts["sha256"]:
        return f"{path} is torn or corrupt (size or SHA-256 differs from its manifest)"
    return None


def _hash(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
