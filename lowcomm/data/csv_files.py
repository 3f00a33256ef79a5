"""Local CSV and TSV files by glob: each row holds a text or the columns of a conversation."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lowcomm.data.errors import bad
from lowcomm.data.files import matched
from lowcomm.data.reading import read_bytes
from lowcomm.data.rows import Rows, RowSource, missing_column
from lowcomm.data.source import Corpus
from lowcomm.types import ConfigError


@dataclass(frozen=True, kw_only=True)
class Csv(RowSource):
    """Rows under a line of column names, quoted as RFC 4180 has it; the split goes by a hash of each row's text.

    gzip, bzip2, xz and zstd are unpacked; a byte order mark may stand at the beginning.
    """

    glob: str
    """Pattern of the files, for example 'dump/*.csv'."""
    delimiter: str | None = None
    """Character between columns; None: a tab where a file is called .tsv, a comma elsewhere."""

    def check(self) -> None:
        super().check()
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise bad("source.delimiter", self.delimiter, "one character", "',', ';' and '|' are usual")

    def read(self, cache_dir: Path) -> Corpus:
        """Raises ConfigError for a missing column, and with file and line for a row that does not fit the first."""
        rows, found = Rows(self), matched(self.glob)
        limit = csv.field_size_limit(sys.maxsize)  # 128 kB is less than a text may have
        try:
            for name, path in found.files:
                for place, row in self._rows(path):
                    rows.add(lambda name=name, place=place, row=row: self.document(name, place, _whole(place, row)))
        finally:
            csv.field_size_limit(limit)
        return rows.corpus(found, self.glob)

    def _rows(self, path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
        try:
            text = read_bytes(path).decode("utf-8")
        except UnicodeDecodeError as error:
            fix = f"byte {error.start} is not UTF-8: convert the file"
            raise bad("source.glob", str(path), "UTF-8 text", fix) from error
        tab = ".tsv" in (suffix.lower() for suffix in path.suffixes)
        delimiter = self.delimiter if self.delimiter is not None else "\t" if tab else ","
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, restkey=_TOO_MANY)
        try:
            names = list(reader.fieldnames or [])
            for column in self.columns():
                if names and column not in names:
                    raise missing_column(column, f"{path} parted at {delimiter!r}", names)
                if names.count(column) > 1:
                    raise bad("source.column", column, "a column that is there once", f"rename one of them in {path}")
            for row in reader:
                yield f"{path} line {reader.line_num}", row
        except csv.Error as error:
            raise ConfigError(
                f"data.source: {path} line {reader.line_num} is not CSV ({error}); legal: quoted as RFC 4180 has it; "
                "fix: repair the row, or name another data.source.delimiter"
            ) from error


_TOO_MANY = "\0"
"""Key of the cells beyond the columns of the first line."""


def _whole(place: str, row: Mapping[str, object]) -> Mapping[str, object]:
    """The row, if it has a cell for each column and no more; raises ConfigError."""
    if _TOO_MANY in row or None in row.values():
        more = "more" if _TOO_MANY in row else "fewer"
        raise ConfigError(
            f"data.source: {place} has {more} cells than the first line has columns; legal: equally many; "
            "fix: quote cells that hold the delimiter or a line break"
        )
    return row
