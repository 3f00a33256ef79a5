"""Local text files by glob: each file is one document."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from lowcomm.data.errors import bad
from lowcomm.data.files import matched
from lowcomm.data.reading import read_bytes
from lowcomm.data.source import Corpus, Document, Source


@dataclass(frozen=True, kw_only=True)
class TextFiles(Source):
    """Text files, one document each; a file with the content of an earlier one is left out.

    UTF-8, or UTF-16 with a byte order mark; gzip, bzip2, xz and zstd are unpacked.
    """

    glob: str
    """Pattern of the files, for example 'books/**/*.txt'."""

    def read(self, cache_dir: Path) -> Corpus:
        """Raises ConfigError when nothing matches, a file is not UTF-8 or all of them are empty."""
        documents: list[Document] = []
        seen: set[bytes] = set()
        duplicate = 0
        found = matched(self.glob)
        for name, path in found.files:
            text = read_bytes(path)
            _check_utf8(path, text)
            digest = sha256(text).digest()
            if digest in seen:
                duplicate += 1
            elif text:
                documents.append(Document(name, name.encode(), text))
            seen.add(digest)
        if not documents:
            raise bad("source.glob", self.glob, "files with text", "all the matched files are empty: add text")
        stats: dict[str, int | float | str] = {
            "files": len(documents),
            "files_skipped_undecodable": 0,
            "files_duplicate": duplicate,
            "links_left_out": found.links_left_out,
        }
        return Corpus(documents=documents, stats=stats)


def _check_utf8(path: Path, text: bytes) -> None:
    """A user's own file is never dropped in silence; raises ConfigError with the byte position."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad(
            "source.glob",
            str(path),
            "UTF-8 text files",
            f"byte {error.start} is not UTF-8: convert the file or narrow the glob",
        ) from error
