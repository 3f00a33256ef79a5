"""Hugging Face datasets by name, streamed or read as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowcomm.data.errors import bad, need
from lowcomm.data.rows import missing_column, row_document
from lowcomm.data.source import Corpus, Document, Source

if TYPE_CHECKING:
    from datasets import IterableDataset


@dataclass(frozen=True, kw_only=True)
class HFDataset(Source):
    """Rows of a `datasets` dataset (needs the extra `data`); the split goes by a hash of each row's text.

    When streamed, rows are read in their order, without a shuffle buffer: a buffer's content cannot be
    restored, so the position could not be exact. Islands read whole files of the dataset where the number of
    islands divides the number of files, every n-th row otherwise.
    """

    name: str
    """Name on the hub, a local directory, or a format ('json', 'parquet', 'text') together with data_files."""
    subset: str | None = None
    """Configuration of the dataset, where it has several."""
    split: str = "train"
    """Split with the training rows."""
    column: str = "text"
    """Column with the text."""
    data_files: str | None = None
    """Pattern of local files or of files of the dataset."""
    streaming: bool = True
    """Read while training; otherwise the whole split is loaded into memory first."""
    validation_split: str | None = None
    """Split with the validation rows; None: a part of the training rows is held out."""

    def check(self) -> None:
        need("datasets", "data")
        if not self.name:
            raise bad("source.name", self.name, "the name of a dataset", "for local files use json and data_files")

    def read(self, cache_dir: Path) -> Corpus:
        """All rows; raises ConfigError if the dataset cannot be loaded or has no text."""
        documents = self._rows(self.split, cache_dir)
        validation = self._rows(self.validation_split, cache_dir) if self.validation_split else None
        stats: dict[str, int | float | str] = {
            "files": 1,
            "files_skipped_undecodable": 0,
            "files_duplicate": 0,
        }
        return Corpus(documents=documents, validation=validation, stats=stats)

    def _rows(self, split: str, cache_dir: Path) -> list[Document]:
        dataset = self._load(split, streaming=False, cache_dir=cache_dir)
        rows = (
            row_document(split, f"{self.name} {split} row {number}", value)
            for number, value in enumerate(dataset[self.column], start=1)
        )
        documents = [document for document in rows if document]
        if not documents:
            raise bad("source.split", split, "a split with text", "all its rows are empty: name another split")
        return documents

    def open(self, split: str) -> IterableDataset:
        """A stream over the split that has not been started; raises ConfigError if it cannot be opened."""
        return self._load(split, streaming=True, cache_dir=None)

    def _load(self, split: str, *, streaming: bool, cache_dir: Path | None) -> Any:
        datasets = need("datasets", "data")
        try:
            dataset = datasets.load_dataset(
                self.name,
                self.subset,
                split=split,
                data_files=self.data_files,
                streaming=streaming,
                cache_dir=str(cache_dir / "datasets") if cache_dir else None,
            )
            # Some streams know their columns only after the first row.
            columns = dataset.column_names or list(next(iter(dataset.take(1)), {}))
        except Exception as error:  # datasets raises many kinds, from network errors to broken files
            raise bad(
                "source",
                f"{self.name} split {split} data_files {self.data_files}",
                "a dataset that can be loaded",
                # A stream whose pattern matches nothing ends with a bare StopIteration.
                f"check name, subset, split, data_files and network ({str(error) or 'no file matches'})",
            ) from error
        if self.column not in columns:
            raise missing_column(self.column, f"{self.name} {split}", columns)
        return dataset
