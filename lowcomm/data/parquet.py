"""Local Parquet files by glob: each row holds a text or a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lowcomm.data.errors import need, one_line
from lowcomm.data.files import matched
from lowcomm.data.rows import RowSource, missing_column, row_corpus
from lowcomm.data.source import Corpus, Document
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
        documents: list[Document] = []
        files = matched(self.glob)
        for name, path in files:
            for number, row in enumerate(self._rows(path), start=1):
                if document := self.document(name, f"{path} row {number}", row):
                    documents.append(document)
        return row_corpus(documents, len(files), self.glob)

    def _rows(self, path: Path) -> Iterator[dict[str, object]]:
        parquet, columns = need("pyarrow.parquet", "data"), self.columns()
        try:
            with parquet.ParquetFile(path) as file:
                for column in columns:
                    if column not in file.schema_arrow.names:
                        raise missing_column(column, str(path), file.schema_arrow.names)
                for batch in file.iter_batches(columns=columns):
                    yield from batch.to_pylist()
        except (OSError, ValueError) as error:  # ArrowInvalid and UnicodeDecodeError are ValueErrors
            raise ConfigError(
                f"data.source: {path} cannot be read as Parquet ({one_line(error)}); "
                "legal: Parquet with UTF-8 text; fix: write the file again"
            ) from error
