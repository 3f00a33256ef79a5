"""Reads the training rows of one island from a stream, in their order, from an exact position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowcomm.data.errors import one_line
from lowcomm.data.shard import State, count
from lowcomm.data.source import Document
from lowcomm.types import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from datasets import IterableDataset


@dataclass(frozen=True, kw_only=True)
class IslandRows:
    """What an island reads."""

    open: Callable[[], IterableDataset]
    """A stream of its rows that has not been started."""
    document: Callable[[str, Mapping[str, Any]], Document | None]
    """(place, row) to a document, None for an empty text; raises ConfigError for a bad row."""
    keep: Callable[[bytes], bool]
    """Whether a document of this key is trained on."""
    place: Callable[[int], str]
    """File and number of the island's row with this number, from 1 on: slow, for messages."""
    skip_bad: bool
    """Leave out, and count, bad rows."""


class RowReader:
    """The position is the dataset's own state after the last row read."""

    def __init__(self, rows: IslandRows) -> None:
        self._source = rows
        self.epoch = self.rows = self.skipped = 0
        self._dataset: IterableDataset | None = None
        self._iterator: Iterator[dict[str, Any]] | None = None
        # A dataset forgets a state that it was given until its first row is read (datasets 5.2).
        self._given: dict[str, Any] | None = None

    def next(self) -> Document | None:
        """The next training row, None at the end of the epoch; raises DataError, and is then to be `rewound`."""
        while True:
            try:
                if self._iterator is None:
                    self._start(self._given)
                assert self._iterator is not None
                row = next(self._iterator)
            except StopIteration:
                self._given = None
                return None
            except Exception as error:  # broken files and lost connections, of many kinds
                raise DataError(
                    f"data.source: reading {self._source.place(self.rows + 1)} failed ({type(error).__name__}: "
                    f"{one_line(error)}); legal: readable rows; fix: repair the file or the connection"
                ) from error
            self.rows, self._given = self.rows + 1, None
            document = self._document(row)
            if document and self._source.keep(document.key):
                return document

    def _document(self, row: Mapping[str, Any]) -> Document | None:
        try:
            return self._source.document(f"row {self.rows}", row)
        except ConfigError:
            if self._source.skip_bad:
                self.skipped += 1
                return None
        place = self._source.place(self.rows)
        try:
            return self._source.document(place, row)  # the same error, with the place of the row
        except ConfigError as error:
            raise DataError(f"{error}; or pass --data.source.skip-bad-rows to leave such rows out") from error

    def next_epoch(self) -> None:
        """Back to the first row."""
        self.epoch, self.rows = self.epoch + 1, 0
        self._dataset = self._iterator = self._given = None

    def _start(self, state: dict[str, Any] | None) -> None:
        """A fresh dataset each time: an iterated one would start again from the state that it was given."""
        dataset = self._source.open()
        if state is not None:
            dataset.load_state_dict(deepcopy(state))
        self._dataset, self._iterator = dataset, iter(dataset)

    def state(self) -> State:
        """The position, JSON-able."""
        if self._given is None and self._dataset is None:
            self._start(None)
        given = self._given if self._given is not None or self._dataset is None else self._dataset.state_dict()
        return {"epoch": self.epoch, "rows": self.rows, "skipped": self.skipped, "dataset": deepcopy(given)}

    def rewind(self, state: State) -> None:
        """Back to a position of this reader; what failed is opened again with the next row."""
        self.epoch, self.rows, self.skipped = state["epoch"], state["rows"], state["skipped"]
        self._dataset, self._iterator, self._given = None, None, state["dataset"]

    def load(self, state: Mapping[str, Any]) -> None:
        """Raises CheckpointError for a malformed state; the reader is then unchanged."""
        epoch, rows = count(state, "epoch"), count(state, "rows")
        skipped = count({"skipped": 0, **state}, "skipped")  # older checkpoints do not have it
        before = self._dataset, self._iterator
        try:
            given = deepcopy(dict(state["dataset"]))
            self._start(given)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            self._dataset, self._iterator = before
            raise malformed(error) from error
        self.epoch, self.rows, self.skipped, self._given = epoch, rows, skipped, given


def malformed(error: Exception) -> CheckpointError:
    """The error of a stream's state that can't be read."""
    return CheckpointError(
        f"data position: the stream's state is malformed ({type(error).__name__}); "
        "legal: what state_dict returned; fix: use an earlier checkpoint"
    )
