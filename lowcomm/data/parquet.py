"""Local Parquet files by glob: each row of one column is a document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lowcomm.data.errors import need, one_line
from lowcomm.data.files import matched
from lowcomm.data.rows import missing_column, row_corpus, row_document
from lowcomm.data.source import Corpus, Document, Source
from lowcomm.types import ConfigError


@dataclass(frozen=True, kw_only=True)
class Parquet(Source):
    """Parquet files (needs the extra `data`); the split goes by a hash of each row's text."""

    glob: str
    """Pattern of the files, for example 'dump/*.parquet'."""
    column: str = "text"
    """Name of the column with the text."""

    def check(self) -> None:
        need("pyarrow.parquet", "data")

    def read(self, cache_dir: Path) -> Corpus:
        """Raises ConfigError for a broken file, a missing column or a row without text."""
        documents: list[Document] = []
        files = matched(self.glob)
        for name, path in files:
            for number, value in enumerate(self._values(path), start=1):
                if document := row_document(name, f"{path} row {number}", value):
                    documents.append(document)
        return row_corpus(documents, len(files), self.glob)

    def _values(self, path: Path) -> Iterator[object]:
        parquet = need("pyarrow.parquet", "data")
        try:
            with parquet.ParquetFile(path) as file:
                if self.column not in file.schema_arrow.names:
                    raise missing_column(self.column, str(path), file.schema_arrow.names)
                for batch in file.iter_batches(columns=[self.column]):
                    yield from batch.column(0).to_pylist()
        except (OSError, ValueError) as error:  # ArrowInvalid and UnicodeDecodeError are ValueErrors
            raise ConfigError(
                f"data.source: {path} cannot be read as Parquet ({one_line(error)}); "
                "legal: Parquet with UTF-8 text; fix: write the file again"
            ) from error
