"""Sources of installed packages: natural clients, offline, each with a style of its own."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from lowcomm.data.errors import bad
from lowcomm.data.python_corpus import read_tree
from lowcomm.data.source import Corpus, Document, Source


@dataclass(frozen=True, kw_only=True)
class Packages(Source):
    """Python sources of some installed packages; the first folder of each file's name is its package (its client)."""

    names: tuple[str, ...] = ("numpy", "torch", "transformers", "setuptools")
    """Import names of the packages."""
    max_bytes_each: int | None = 500_000
    """At most this many bytes per package, spread over its files; None: all of it."""

    def check(self) -> None:
        if not self.names:
            raise bad("source.names", self.names, "at least one package", "name installed packages")
        if self.max_bytes_each is not None and self.max_bytes_each < 1:
            raise bad("source.max_bytes_each", self.max_bytes_each, "None or 1 and more bytes", "leave it out")

    def read(self, cache_dir: Path) -> Corpus:
        """Files sorted by package and path; equal contents once, over all packages; tests are left out."""
        documents: list[Document] = []
        seen: set[bytes] = set()
        duplicate = undecodable = 0
        for name in self.names:
            corpus = read_tree(_root(name), self.max_bytes_each)
            undecodable += int(corpus.stats["files_skipped_undecodable"])
            duplicate += int(corpus.stats["files_duplicate"])
            for d in corpus.documents:
                digest = sha256(d.text).digest()
                if digest in seen:
                    duplicate += 1
                else:
                    documents.append(Document(f"{name}/{d.file}", f"{name}/{d.file}".encode(), d.text))
                seen.add(digest)
        stats: dict[str, int | float | str] = {
            "files": len(documents),
            "files_skipped_undecodable": undecodable,
            "files_duplicate": duplicate,
        }
        return Corpus(documents=documents, stats=stats)


def _root(name: str) -> Path:
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise bad("source.names", name, "an installed package with a folder of its own", "install it or name another")
    return Path(next(iter(spec.submodule_search_locations)))
