"""The shard of a stream of rows: documents are packed into sequences as they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lowcomm.data.errors import bad, one_line
from lowcomm.data.rows import row_document
from lowcomm.data.shard import Shard, State, check_identity, count, pair
from lowcomm.data.tokenizer import Tokenizer
from lowcomm.types import CheckpointError, ConfigError

if TYPE_CHECKING:
    from datasets import IterableDataset


class StreamShard(Shard):
    """Rows of one island, in their order, epoch after epoch.

    The position is the dataset's own state after the last row read, and the tokens of it not yet handed out.
    """

    def __init__(
        self,
        open_rows: Callable[[], IterableDataset],
        *,
        column: str,
        keep: Callable[[bytes], bool],
        tokenizer: Tokenizer,
        seq_len: int,
        batch_size: int,
        identity: Mapping[str, int | str],
    ) -> None:
        """Reads the first sequence, so that an empty shard is found before anything starts (ConfigError)."""
        self._open_rows = open_rows
        self._column = column
        self._keep = keep
        self._tokenizer = tokenizer
        self._seq_len = seq_len
        self._batch_size = batch_size
        self._identity = {"kind": "stream", **identity, "seq_len": seq_len}
        self._epoch = self._rows = self._tokens = 0
        self._leftover = np.zeros(0, dtype=np.int64)
        self._dataset, self._iterator = self._start(None)
        # A dataset forgets a state that it was given until its first row is read (datasets 5.2).
        self._given: dict[str, Any] | None = None
        self._fill(seq_len + 1)

    def _start(self, state: dict[str, Any] | None) -> tuple[IterableDataset, Iterator[dict[str, Any]]]:
        """A fresh dataset each time: an iterated one would start again from the state that it was given."""
        dataset = self._open_rows()
        if state is not None:
            dataset.load_state_dict(state)
        return dataset, iter(dataset)

    def _fill(self, needed: int) -> None:
        """Read documents until `needed` tokens wait; raises ConfigError if an epoch has too few."""
        parts, waiting = [self._leftover], len(self._leftover)
        epoch_start = None
        while waiting < needed:
            ids = self._next_document()
            if ids is None:
                if epoch_start is not None and waiting - epoch_start <= self._seq_len:
                    raise self._too_short(waiting - epoch_start)
                epoch_start = waiting
                self._epoch, self._rows = self._epoch + 1, 0
                self._dataset, self._iterator = self._start(None)
            else:
                parts.append(ids)
                waiting += len(ids)
        self._leftover = np.concatenate(parts)

    def _too_short(self, tokens: int) -> ConfigError:
        island = self._identity.get("island", 0)
        if tokens == 0:
            return bad(
                "source",
                "an empty shard",
                "text for every island",
                f"island {island} gets no training row: use fewer islands or more rows",
            )
        return bad(
            "seq_len",
            self._seq_len,
            f"at most {tokens - 1}, the rows of island {island} have {tokens} tokens",
            "shorten the sequences, use fewer islands or add text",
        )

    def _next_document(self) -> np.ndarray | None:
        """int64 tokens of the next training row, None at the end of the epoch."""
        while True:
            try:
                row = next(self._iterator)
            except StopIteration:
                self._given = None
                return None
            except Exception as error:  # broken files and lost connections, of many kinds
                raise ConfigError(
                    f"data.source: reading row {self._rows + 1} failed ({type(error).__name__}: {one_line(error)}); "
                    "legal: readable rows; fix: repair the files or the connection, then resume"
                ) from error
            self._rows, self._given = self._rows + 1, None
            document = row_document("", f"row {self._rows}", row[self._column])
            if document and self._keep(document.key):
                return next(iter(self._tokenizer.encode([document.text]))).astype(np.int64)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        step = self._batch_size * self._seq_len
        self._fill(step + 1)
        starts = np.arange(self._batch_size)[:, None] * self._seq_len
        windows = self._leftover[starts + np.arange(self._seq_len + 1)]
        self._leftover = self._leftover[step:]
        self._tokens += step
        return pair(windows)

    @property
    def tokens(self) -> int:
        return self._tokens

    def state_dict(self) -> State:
        return {
            **self._identity,
            "epoch": self._epoch,
            "rows": self._rows,
            "tokens": self._tokens,
            "leftover": self._leftover.tolist(),
            "dataset": self._dataset.state_dict() if self._given is None else deepcopy(self._given),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_identity(state, self._identity)
        epoch, rows, tokens = (count(state, name) for name in ("epoch", "rows", "tokens"))
        try:
            leftover = np.array([int(i) for i in state["leftover"]], dtype=np.int64)
            in_range = bool((leftover >= 0).all() and (leftover < self._tokenizer.vocab_size).all())
            given = deepcopy(dict(state["dataset"]))
            started = self._start(deepcopy(given))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"data position: the stream's state is malformed ({type(error).__name__}); "
                "legal: what state_dict returned; fix: use an earlier checkpoint"
            ) from error
        if not in_range:
            raise CheckpointError(
                "data position: leftover has ids outside the vocabulary; legal: ids of this tokenizer; "
                "fix: resume with the tokenizer of the first run"
            )
        (self._dataset, self._iterator), self._given = started, given
        self._epoch, self._rows, self._tokens, self._leftover = epoch, rows, tokens, leftover
