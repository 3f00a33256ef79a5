"""The standard library's sources: real text that every machine with Python has, offline."""

from __future__ import annotations

import os
import sysconfig
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from lowcomm.data.errors import bad
from lowcomm.data.source import Corpus, Document, Source

# Tests are left out because some systems do not install them, and lib2to3's are broken on purpose.
_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


@dataclass(frozen=True, kw_only=True)
class PythonCorpus(Source):
    """Sources of the running interpreter's standard library, without tests and installed packages."""

    max_bytes: int | None = None
    """Use at most this many bytes of text, spread over the whole library; None: all of it (about 12 MB)."""

    def check(self) -> None:
        if self.max_bytes is not None and self.max_bytes < 1:
            raise bad("source.max_bytes", self.max_bytes, "None or 1 and more bytes", "leave it out")

    def read(self, cache_dir: Path) -> Corpus:
        """Files sorted by relative path; equal contents once; files that are not UTF-8 are counted."""
        return read_tree(Path(sysconfig.get_path("stdlib")), self.max_bytes)


def read_tree(root: Path, max_bytes: int | None) -> Corpus:
    """All sources below `root`; raises ConfigError when there are none."""
    documents: list[Document] = []
    seen: set[bytes] = set()
    undecodable = duplicate = 0
    for name in _names(root):
        text = (root / name).read_bytes()
        digest = sha256(text).digest()
        if not text:
            continue
        if digest in seen:
            duplicate += 1
        elif not _is_utf8(text):
            undecodable += 1
        else:
            documents.append(Document(name, name.encode(), text))
        seen.add(digest)
    documents = _spread(documents, max_bytes)
    if not documents:
        raise bad(
            "source",
            f"PythonCorpus(max_bytes={max_bytes})",
            f"some Python sources under {root}",
            "raise max_bytes, install the standard library's sources, or use TextFiles",
        )
    stats: dict[str, int | float | str] = {
        "files": len(documents),
        "files_skipped_undecodable": undecodable,
        "files_duplicate": duplicate,
    }
    return Corpus(documents=documents, stats=stats)


def _names(root: Path) -> list[str]:
    names: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in _SKIPPED_FOLDERS]
        # The build's own variables differ between machines and hold their paths.
        names += [
            (Path(folder) / f).relative_to(root).as_posix()
            for f in files
            if f.endswith(".py") and not f.startswith("_sysconfigdata")
        ]
    return sorted(names)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _spread(documents: list[Document], max_bytes: int | None) -> list[Document]:
    """Files in the order of a hash until the budget is full: a prefix of the alphabet would be one-sided."""
    if max_bytes is None:
        return documents
    kept: list[Document] = []
    total = 0
    for document in sorted(documents, key=lambda d: sha256(b"spread\0" + d.key).digest()):
        if total + len(document.text) <= max_bytes:
            total += len(document.text)
            kept.append(document)
    return sorted(kept, key=lambda d: d.file)
