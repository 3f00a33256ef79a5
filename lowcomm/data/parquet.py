"""Local Parquet files by glob: each row holds a text or a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lowcomm.data.errors import need, one_line
from lowcomm.data.files import matched
from lowcomm.data.rows import Rows, RowSource, filled_only, missing_column
from lowcomm.data.source import Corpus
from lowcomm.types import ConfigError


@dataclass(frozen=True, kw_only=True)
class Parquet(RowSource):
    """Parquet files (needs the extra `data`); the split goes by a hash of each row's text."""

    glob: str
    """Pattern of the files, for example 'dump/*.parquet'."""

    def check(self) -> None:
        super().check()
        need("pyarrow.parquet", "data")

    def read(self, cache_dir: Path) -> Corpus:
        """Raises ConfigError for a broken file, a missing column or a row without text."""
        rows, found = Rows(self), matched(self.glob)
        for name, path in found.files:
            for number, row in enumerate(self._rows(path), start=1):
                place = f"{path} row {number}"
                rows.add(lambda name=name, place=place, row=row: self.document(name, place, row))
        return rows.corpus(found, self.glob)

    def _rows(self, path: Path) -> Iterator[dict[str, object]]:
        parquet = need("pyarrow.parquet", "data")
        try:
            with parquet.ParquetFile(path) as file:
                names = file.schema_arrow.names
                for column in self.columns():
                    if column not in names:
                        raise missing_column(column, str(path), names)
                for batch in file.iter_batches(columns=[name for name in self.all_columns() if name in names]):
                    yield from (filled_only(row, self.chat is not None) for row in batch.to_pylist())
        except (OSError, ValueError) as error:  # ArrowInvalid and UnicodeDecodeError are ValueErrors
            raise ConfigError(
                f"data.source: {path} cannot be read as Parquet ({one_line(error)}); "
                "legal: Parquet with UTF-8 text; fix: write the file again"
            ) from error
