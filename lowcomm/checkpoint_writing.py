"""The files of one island's part of a checkpoint, and the manifest that seals them (see `checkpoint.py`)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from lowcomm.private_files import protect

Part = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name and JSON-able values."""
FORMAT = 1


def write_part(
    partial: Path, parts: Mapping[str, Part], of: Mapping[str, Any], more: Mapping[str, Any], flush: bool
) -> None:
    """An island's files, which nobody else can enter the directory to read; the manifest says what they are `of`."""
    files: dict[str, dict[str, Any]] = {}
    for part, (tensors, values) in parts.items():
        save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, partial / f"{part}.safetensors")
        (partial / f"{part}.json").write_text(json.dumps(values), encoding="utf-8")
        for path in (partial / f"{part}.safetensors", partial / f"{part}.json"):
            files[path.name] = {"sha256": _flush_and_hash(path, flush), "bytes": path.stat().st_size}
    manifest = {"format": FORMAT, **of, "files": files, **more}
    sealed = {**manifest, "sha256": seal(manifest)}
    (partial / "manifest.json").write_text(json.dumps(sealed, indent=1), encoding="utf-8")
    _flush_and_hash(partial / "manifest.json", flush)
    for path in partial.iterdir():
        protect(path)


def seal(manifest: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a manifest without its own entry for it."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _flush_and_hash(path: Path, flush: bool) -> str:
    with path.open("rb+") as f:
        if flush:
            os.fsync(f.fileno())
        return hashlib.file_digest(f, "sha256").hexdigest()


def flush_directory(path: Path) -> None:
    """Let what was made or renamed in a directory survive a loss of power. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
