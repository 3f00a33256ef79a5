"""Local JSON files by glob: an object per line, or one array of objects; each holds a text or a conversation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lowcomm.data.errors import one_line
from lowcomm.data.files import matched
from lowcomm.data.reading import read_bytes
from lowcomm.data.rows import Rows, RowSource
from lowcomm.data.source import Corpus, Document
from lowcomm.types import ConfigError

_OTHERS = {".csv": "Csv", ".tsv": "Csv", ".parquet": "Parquet", ".txt": "TextFiles"}
"""Sources of files with these endings."""


@dataclass(frozen=True, kw_only=True)
class JsonLines(RowSource):
    """One JSON object per line, or an array of objects per file; the split goes by a hash of each row's text.

    gzip, bzip2, xz and zstd are unpacked; a byte order mark may stand at the beginning.
    """

    glob: str
    """Pattern of the files, for example 'dump/*.jsonl'."""

    def read(self, cache_dir: Path) -> Corpus:
        """Raises ConfigError with file and line number for a line that is not UTF-8 or not a JSON object."""
        rows, found = Rows(self), matched(self.glob)
        for name, path in found.files:
            for place, text in _values(path, read_bytes(path)):
                rows.add(lambda name=name, place=place, text=text: self._document(name, place, text))
        return rows.corpus(found, self.glob)

    def _document(self, name: str, place: str, value: object) -> Document | None:
        row = _parsed(place, value) if isinstance(value, bytes) else value
        if not isinstance(row, dict):
            raise ConfigError(
                f"data.source: {place} is a {type(row).__name__}; legal: one JSON object per line, or an array of "
                "objects; fix: give each row as an object, whose keys are the columns"
            )
        return self.document(name, place, row)


def _values(path: Path, text: bytes) -> Iterator[tuple[str, object]]:
    """(place, unparsed line or parsed element of an array) of each row."""
    if text.lstrip().startswith(b"["):
        try:
            array = json.loads(text)
        except (ValueError, RecursionError):
            array = None  # a line that begins so, or a torn array: the line is named below
        if isinstance(array, list) and any(isinstance(element, dict) for element in array):
            yield from ((f"{path} row {number}", element) for number, element in enumerate(array, start=1))
            return
    _check_kind(path, text)
    for number, line in enumerate(text.split(b"\n"), start=1):
        if line.strip():
            yield f"{path} line {number}", line


def _check_kind(path: Path, text: bytes) -> None:
    """Raises ConfigError for a file of another kind: the lines of it would be named one by one."""
    first = text.lstrip().split(b"\n", 1)[0].strip()
    ending = path.name.lower().removesuffix(".gz")
    other = next((source for end, source in _OTHERS.items() if ending.endswith(end)), None)
    if other is not None and not first.startswith((b"{", b"[")):
        raise ConfigError(
            f"data.source: {path} is not JSON; legal: one JSON object per line; fix: read it with {other}"
        )
    if first in (b"{", b"["):  # laid out over several lines
        what = "one object" if first == b"{" else "an array that is torn or does not hold objects"
        raise ConfigError(
            f"data.source: {path} line 1 begins {what} over several lines; legal: one object per line, or an array of "
            f"objects; fix: jq -c '.[]' turns an array into lines, jq -c '.KEY[]' one that is under a key, "
            "jq -c . single objects"
        )


def _parsed(place: str, line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"data.source: {place} is not UTF-8 (byte {error.start}); legal: UTF-8; fix: convert the file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"data.source: {place} is not JSON ({one_line(error)}); legal: one object per line; fix: repair the line"
        ) from error
