"""Sources of installed packages: natural clients, offline, each with a style of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from lowcomm.data.errors import bad
from lowcomm.data.python_corpus import read_tree
from lowcomm.data.source import Corpus, Document, Source
from lowcomm.data.split import fraction_of


@dataclass(frozen=True, kw_only=True)
class PackageSource(Source):
    """Something of some installed packages; the first folder of each file's name is its package (its client)."""

    names: tuple[str, ...] = ("numpy", "torch", "transformers", "setuptools")
    """Import names of the packages."""
    held_out: float = 0.1
    """Fraction of each package's files that is held out, at least one: data.validation_fraction is not used."""

    def check(self) -> None:
        if not self.names:
            raise bad("source.names", self.names, "at least one package", "name installed packages")
        if not 0 < self.held_out <= 0.5:
            raise bad("source.held_out", self.held_out, "above 0 and at most 0.5", "use 0.1")


@dataclass(frozen=True, kw_only=True)
class Packages(PackageSource):
    """Python sources as they are."""

    max_bytes_each: int | None = 500_000
    """At most this many bytes per package, spread over its files; None: all of it."""

    def check(self) -> None:
        super().check()
        if self.max_bytes_each is not None and self.max_bytes_each < 1:
            raise bad("source.max_bytes_each", self.max_bytes_each, "None or 1 and more bytes", "leave it out")

    def read(self, cache_dir: Path) -> Corpus:
        """Files sorted by package and path; equal contents once, over all packages; tests are left out."""
        documents: list[Document] = []
        held: list[Document] = []
        seen: set[bytes] = set()
        duplicate = undecodable = 0
        for name in self.names:
            corpus = read_tree(package_root(name), self.max_bytes_each)
            undecodable += int(corpus.stats["files_skipped_undecodable"])
            duplicate += int(corpus.stats["files_duplicate"])
            own: list[Document] = []
            for d in corpus.documents:
                digest = sha256(d.text).digest()
                if digest in seen:
                    duplicate += 1
                else:
                    own.append(Document(f"{name}/{d.file}", f"{name}/{d.file}".encode(), d.text))
                seen.add(digest)
            chosen = held_out_files(own, self.held_out)
            held += [d for d in own if d.key in chosen]
            documents += [d for d in own if d.key not in chosen]
        stats: dict[str, int | float | str] = {
            "files": len(documents) + len(held),
            "files_skipped_undecodable": undecodable,
            "files_duplicate": duplicate,
        }
        return Corpus(documents=documents, validation=held, stats=stats)


def held_out_files(documents: Sequence[Document], fraction: float) -> set[bytes]:
    """Keys of this fraction of the files, at least one, by their hash."""
    keys = sorted({d.key for d in documents}, key=lambda key: fraction_of(key, "validation"))
    return set(keys[: max(1, round(len(keys) * fraction))])


def package_root(name: str) -> Path:
    """The folder of an installed package; raises ConfigError if there is none."""
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise bad("source.names", name, "an installed package with a folder of its own", "install it or name another")
    return Path(next(iter(spec.submodule_search_locations)))
