"""The shard of a stream of rows: documents are packed into sequences as they are read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from lowcomm.data.errors import bad
from lowcomm.data.row_reader import IslandRows, RowReader, malformed
from lowcomm.data.shard import Shard, State, check_identity, pair
from lowcomm.data.shard import count as counter
from lowcomm.data.source import Document
from lowcomm.data.tokenizer import Tokenizer
from lowcomm.types import CheckpointError, ConfigError, DataError


class StreamedShard(Shard):
    """Rows of one island, in their order, epoch after epoch.

    The position is the dataset's own state after the last row read, and what was read and not yet handed out.
    """

    def __init__(
        self,
        rows: IslandRows,
        *,
        tokenizer: Tokenizer,
        seq_len: int,
        batch_size: int,
        identity: Mapping[str, int | str],
    ) -> None:
        """Reads the first sequence, so that an empty shard is found before anything starts (ConfigError)."""
        self._reader = RowReader(rows)
        self._tokenizer = tokenizer
        self._seq_len = seq_len
        self._batch_size = batch_size
        self._identity = {"kind": self._kind, **identity, "seq_len": seq_len}
        self._tokens = 0
        self._keep([])
        try:
            self._fill(self._first)
        except DataError as error:
            raise ConfigError(str(error)) from error

    _kind: str
    """Part of the identity: the position of one kind of shard is not that of another."""

    @property
    @abstractmethod
    def _first(self) -> int:
        """How much the first sequence needs."""

    @abstractmethod
    def _waiting(self) -> int:
        """What was read and not yet handed out."""

    @abstractmethod
    def _add(self, document: Document) -> None:
        """Adds a document to what is waiting; raises DataError if nothing of it can be learnt."""

    @abstractmethod
    def _kept(self) -> Any:
        """What is waiting, not to be changed by `_add`."""

    @abstractmethod
    def _keep(self, waiting: Any) -> None:
        """Makes this what is waiting."""

    @abstractmethod
    def _too_few(self, found: int) -> bool:
        """Whether this is too little for the text of an epoch."""

    def _fill(self, needed: int) -> None:
        """Read documents until `needed` waits; raises ConfigError if an epoch has too few.

        Raises DataError where reading fails: then nothing was read.
        """
        if self._waiting() >= needed:
            return
        place, kept = self._reader.state(), self._kept()
        try:
            epoch_start = None
            while self._waiting() < needed:
                document = self._reader.next()
                if document is not None:
                    self._add(document)
                    continue
                if epoch_start is not None and self._too_few(self._waiting() - epoch_start):
                    raise self._too_short(self._waiting() - epoch_start)
                epoch_start = self._waiting()
                self._reader.next_epoch()
        except DataError:
            self._reader.rewind(place)
            self._keep(kept)
            raise

    def _too_short(self, found: int) -> ConfigError:
        island = self._identity.get("island", 0)
        if found == 0:
            return bad(
                "source",
                "an empty shard",
                "text for every island",
                f"island {island} gets no training row: use fewer islands or more rows",
            )
        return bad(
            "seq_len",
            self._seq_len,
            f"at most {found - 1}, the rows of island {island} have {found} tokens",
            "shorten the sequences, use fewer islands or add text",
        )

    @property
    def tokens(self) -> int:
        return self._tokens

    @property
    def skipped(self) -> int:
        return self._reader.skipped

    def state_dict(self) -> State:
        return {**self._identity, **self._reader.state(), "tokens": self._tokens, "leftover": self._leftover_state()}

    @abstractmethod
    def _leftover_state(self) -> list[Any]:
        """What is waiting, JSON-able."""

    @abstractmethod
    def _leftover_of(self, state: list[Any]) -> Any:
        """What `_leftover_state` gave; raises KeyError, TypeError or ValueError for anything else."""

    def _checked(self, ids: list[Any]) -> np.ndarray:
        """int64 ids of this vocabulary; raises CheckpointError."""
        found = np.array([int(i) for i in ids], dtype=np.int64)
        if not bool((found >= 0).all() and (found < self._tokenizer.vocab_size).all()):
            raise CheckpointError(
                "data position: leftover has ids outside the vocabulary; legal: ids of this tokenizer; "
                "fix: resume with the tokenizer of the first run"
            )
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_identity(state, self._identity)
        tokens = counter(state, "tokens")
        try:
            leftover = self._leftover_of(state["leftover"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise malformed(error) from error
        self._reader.load(state)
        self._tokens = tokens
        self._keep(leftover)


class StreamShard(StreamedShard):
    """Texts, packed: each sequence starts on the last token of the one before."""

    _kind = "stream"

    @property
    def _first(self) -> int:
        return self._seq_len + 1

    def _waiting(self) -> int:
        return self._size

    def _add(self, document: Document) -> None:
        self._parts.append(next(iter(self._tokenizer.encode([document.text]))).astype(np.int64))
        self._size += len(self._parts[-1])

    def _kept(self) -> Any:
        return list(self._parts)

    def _keep(self, waiting: Any) -> None:
        self._parts: list[np.ndarray] = waiting
        self._size = sum(len(part) for part in waiting)

    def _too_few(self, found: int) -> bool:
        return found <= self._seq_len

    def prepare(self, batches: int) -> None:
        self._fill(batches * self._batch_size * self._seq_len + 1)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        step = self._batch_size * self._seq_len
        self._fill(step + 1)
        waiting = np.concatenate(self._parts)
        starts = np.arange(self._batch_size)[:, None] * self._seq_len
        windows = waiting[starts + np.arange(self._seq_len + 1)]
        self._keep([waiting[step:]])
        self._tokens += step
        return pair(windows)

    def _leftover_state(self) -> list[Any]:
        return [token for part in self._parts for token in part.tolist()]

    def _leftover_of(self, state: list[Any]) -> Any:
        return [self._checked(state)]
