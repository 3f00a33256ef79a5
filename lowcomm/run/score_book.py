"""The score book of a run: what rules made of islands in each round, append-only, each line bound to the one before.

    scores.jsonl    {"round": 3, "scores": {"trust": {"0": 1.0, ...}}, "hash": SHA-256 of the hash before and this line}

Whoever changes, drops or inserts a line breaks the chain at it; the last hash, told to somebody else, also shows a
shorter file. A run that is resumed before its last round goes on below, with the same rounds once more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

NAME = "scores.jsonl"
Scores = Mapping[str, Mapping[int, float]]
"""By what is scored and island."""


def append(directory: Path, round: int, scores: Scores) -> None:
    """Add a round. Raises OSError."""
    path = directory / NAME
    before = _last(path)
    row = {"round": round, "scores": {name: {str(k): v for k, v in by.items()} for name, by in scores.items()}}
    body = json.dumps(row, sort_keys=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(handle, (json.dumps({**row, "hash": _link(before, body)}, sort_keys=True) + "\n").encode())
    finally:
        os.close(handle)


def first_broken(directory: Path) -> int | None:
    """Number (from 1) of the first line that does not follow from those before it; None: all do."""
    path, before = directory / NAME, ""
    if not path.exists():
        return None
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            row = json.loads(text)
            told = row.pop("hash")
        except (ValueError, KeyError, AttributeError):
            return number
        before = _link(before, json.dumps(row, sort_keys=True))
        if told != before:
            return number
    return None


def _link(before: str, body: str) -> str:
    return sha256(f"{before}\n{body}".encode()).hexdigest()


def _last(path: Path) -> str:
    """The hash of the last line, which is made whole if a dying process tore it."""
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    rows = whole.splitlines()
    return str(json.loads(rows[-1])["hash"]) if rows else ""
