"""Checkpoints: one new directory per save and island, a manifest with SHA-256 written last, verified on load.

    checkpoints/ROUND/island-00000/{island,global}.safetensors  {island,global}.json  manifest.json

ROUND is 000040 after round 40 and 000040-stop1 for a save inside a round. Each island renames its own directory into
place, so that neither a shared file system nor a common clock is needed; a checkpoint counts if every island's part is
complete. Tensors are safetensors, everything else is JSON: loading executes no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowcomm.types import CheckpointError

Part = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name and JSON-able values."""

NAME = re.compile(r"(\d{6,})(?:-stop(\d+))?")
FORMAT = 1


def save(root: Path, name: str, island: int, parts: Mapping[str, Part]) -> Path:
    """Write one island's parts as checkpoint `name` under `root`; returns its directory.

    Raises CheckpointError (disk full, read-only, ...); earlier checkpoints are then as they were.
    """
    partial = root / f".partial-{name}-{island:05d}"
    final = _island_dir(root, name, island)
    try:
        if final.exists():
            return final  # the same step was saved already (a stop right after a periodic save)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files: dict[str, dict[str, Any]] = {}
        for part, (tensors, values) in parts.items():
            save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, partial / f"{part}.safetensors")
            (partial / f"{part}.json").write_text(json.dumps(values), encoding="utf-8")
            for path in (partial / f"{part}.safetensors", partial / f"{part}.json"):
                files[path.name] = {"sha256": _sync_and_hash(path), "bytes": path.stat().st_size}
        manifest = {"format": FORMAT, "checkpoint": name, "island": island, "files": files}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _sync_and_hash(partial / "manifest.json")
        final.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(final)
        _sync_directory(final.parent)
        _sync_directory(root)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        cause = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"checkpoint {name} of island {island} could not be written to {root}: {cause}. "
            "Earlier checkpoints are intact. Free some space or make the directory writable."
        ) from error
    return final


def names(root: Path) -> list[str]:
    """Checkpoint names under `root`, oldest first, complete or not."""
    found = [p.name for p in root.glob("*") if p.is_dir() and NAME.fullmatch(p.name)]
    return sorted(found, key=_age)


def verified(root: Path, island: int) -> list[str]:
    """Names of the checkpoints in which this island's part is whole (every SHA-256 matches), oldest first."""
    return [name for name in names(root) if _problem(root, name, island) is None]


def load(root: Path, name: str, island: int) -> dict[str, Part]:
    """One island's parts, verified. The part "global" may lie with another island. Raises CheckpointError."""
    problem = _problem(root, name, island)
    if problem is not None:
        raise CheckpointError(problem)
    parts = _read(_island_dir(root, name, island))
    if "global" not in parts:
        for other in sorted((root / name).glob("island-*")):
            number = int(other.name.removeprefix("island-"))
            if (other / "global.json").exists() and _problem(root, name, number) is None:
                parts["global"] = _read(other)["global"]
                return parts
        raise CheckpointError(f"checkpoint {name} in {root} has no global part that is whole")
    return parts


def prune(root: Path, keep: int, islands: int) -> None:
    """Remove all but the newest `keep` checkpoints that have a part of each island, and what never got complete."""
    complete = [n for n in names(root) if len(list((root / n).glob("island-*/manifest.json"))) == islands]
    kept = complete[-keep:]
    for name in names(root):
        if kept and name not in kept and _age(name) < _age(kept[-1]):
            shutil.rmtree(root / name, ignore_errors=True)


def _age(name: str) -> tuple[int, int]:
    match = NAME.fullmatch(name)
    assert match is not None
    return int(match[1]), 0 if match[2] is None else 1 + int(match[2])


def _island_dir(root: Path, name: str, island: int) -> Path:
    return root / name / f"island-{island:05d}"


def _read(directory: Path) -> dict[str, Part]:
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    stems = sorted({Path(file).stem for file in manifest["files"]})
    return {
        stem: (
            load_file(directory / f"{stem}.safetensors"),
            json.loads((directory / f"{stem}.json").read_text(encoding="utf-8")),
        )
        for stem in stems
    }


def _problem(root: Path, name: str, island: int) -> str | None:
    """What is wrong with an island's part, or None."""
    directory = _island_dir(root, name, island)
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"{directory} has format {manifest['format']}, this version reads {FORMAT}"
        if (manifest["checkpoint"], manifest["island"]) != (name, island):
            return f"{directory} is checkpoint {manifest['checkpoint']} of island {manifest['island']}: it was moved"
        for file, facts in manifest["files"].items():
            if Path(file).name != file:
                return f"{directory} names the file {file!r} outside itself"
            path = directory / file
            if path.stat().st_size != facts["bytes"] or _hash(path) != facts["sha256"]:
                return f"{path} is torn or corrupt (size or SHA-256 differs from its manifest)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{directory} is incomplete or unreadable ({type(error).__name__})"
    return None


def _hash(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _sync_and_hash(path: Path) -> str:
    with path.open("rb+") as f:
        os.fsync(f.fileno())
        return hashlib.file_digest(f, "sha256").hexdigest()


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
