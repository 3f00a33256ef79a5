"""Hugging Face datasets by name, streamed or read as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowcomm.data.errors import bad, need
from lowcomm.data.files import matched
from lowcomm.data.reading import read_bytes
from lowcomm.data.rows import Rows, RowSource, filled_only, missing_column
from lowcomm.data.source import Corpus, Document
from lowcomm.types import ConfigError

if TYPE_CHECKING:
    from datasets import IterableDataset


@dataclass(frozen=True, kw_only=True)
class HFDataset(RowSource):
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
    data_files: str | None = None
    """Pattern of local files or of files of the dataset."""
    streaming: bool = True
    """Read while training; otherwise the whole split is loaded into memory first."""
    validation_split: str | None = None
    """Split with the validation rows; None: a part of the training rows is held out."""

    def check(self) -> None:
        super().check()
        need("datasets", "data")
        if not self.name:
            raise bad("source.name", self.name, "the name of a dataset", "for local files use json and data_files")

    def read(self, cache_dir: Path) -> Corpus:
        """All rows; raises ConfigError if the dataset cannot be loaded or has no text."""
        stats: dict[str, int | float | str] = {"files": 1, "files_skipped_undecodable": 0, "files_duplicate": 0}
        documents, skipped = self._rows(self.split, cache_dir)
        validation = None
        if self.validation_split:
            validation, more = self._rows(self.validation_split, cache_dir)
            skipped += more
        return Corpus(documents=documents, validation=validation, stats={**stats, "rows_skipped": skipped})

    def _rows(self, split: str, cache_dir: Path) -> tuple[list[Document], int]:
        """(documents, rows that were skipped)."""
        dataset = self._load(split, streaming=False, cache_dir=cache_dir)
        names = [name for name in self.all_columns() if name in dataset.column_names]
        rows = Rows(self)
        for number, row in enumerate(dataset.select_columns(names), start=1):
            place = f"{self.name} {split} row {number}"
            rows.add(lambda place=place, row=row: self.row(split, place, row))
        if not rows.documents:
            fix = f"all its rows are skipped, the first as {rows.first}" if rows.first else "all its rows are empty"
            raise bad("source.split", split, "a split with text", f"{fix}: name another split")
        return rows.documents, rows.skipped

    def row(self, file: str, place: str, row: Mapping[str, Any]) -> Document | None:
        """As `document`, without the keys that only other rows of the table fill."""
        return self.document(file, place, filled_only(row, self.chat is not None))

    def open(self, split: str) -> IterableDataset:
        """A stream over the split that has not been started; raises ConfigError if it cannot be opened."""
        return self._load(split, streaming=True, cache_dir=None)

    def place(self, split: str, number: int, island: int = 0, islands: int = 1) -> str:
        """File and number of a row of an island, both from 1 on: reads the files again, so that it is slow."""
        try:
            whole = self.open(split).num_shards % islands == 0
            files = self._local_files() if split == "train" else []
            if whole and islands > 1:
                files = files[island::islands]
            elif islands > 1:
                number = (number - 1) * islands + island + 1
            return self._in_files(files, number) or f"{self.name} {split} row {number}" + (
                f" of island {island}'s files" if whole and islands > 1 else ""
            )
        except ConfigError:
            return f"{self.name} {split} row {number}"

    def _in_files(self, files: Sequence[Path], number: int) -> str | None:
        left = number
        for file in files:
            seen = 0
            try:
                for _ in self._open([str(file)], "train", streaming=True, cache_dir=None):
                    seen += 1
                    if seen == left:
                        return f"{file} row {left}"
            except Exception:  # what is broken here is what is looked for
                return first_bad_line(file) or f"{file} behind row {seen}"
            left -= seen
        return None

    def _local_files(self) -> list[Path]:
        """Files that data_files matches on this machine; none for a dataset of the hub."""
        local = self.data_files is not None and "://" not in self.data_files and self.name in _FORMATS
        return [path for _, path in matched(self.data_files).files] if local and self.data_files else []

    def _load(self, split: str, *, streaming: bool, cache_dir: Path | None) -> Any:
        try:
            files = [escape(str(path.absolute())) for path in self._local_files()] or self.data_files
        except ConfigError:
            files = self.data_files  # nothing matches: datasets says so below
        try:
            dataset = self._open(files, split, streaming=streaming, cache_dir=cache_dir)
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
        for column in self.columns():
            if column not in columns:
                raise missing_column(column, f"{self.name} {split}", columns)
        return dataset

    def _open(self, files: object, split: str, *, streaming: bool, cache_dir: Path | None) -> Any:
        return need("datasets", "data").load_dataset(
            self.name,
            self.subset,
            split=split,
            data_files=files,
            streaming=streaming,
            cache_dir=str(cache_dir / "datasets") if cache_dir else None,
        )


_FORMATS = ("json", "csv", "parquet", "text", "arrow")
"""Names of formats, whose data_files may be local."""


def first_bad_line(file: Path) -> str | None:
    """The first line of a JSON Lines file that is no JSON; None: there is none, or it is another kind of file."""
    if not file.name.removesuffix(".gz").endswith((".json", ".jsonl")):
        return None
    for number, line in enumerate(read_bytes(file).split(b"\n"), start=1):
        try:
            json.loads(line or b"0")
        except (ValueError, RecursionError):
            return f"{file} line {number}"
    return None
