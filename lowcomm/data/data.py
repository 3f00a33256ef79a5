"""The data of a run: shards, validation batches, and what a report says about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowcomm.data.config import DataConfig
from lowcomm.data.errors import bad
from lowcomm.data.shard import Shard, Windows
from lowcomm.data.tokenizer import Tokenizer
from lowcomm.data.windows import evenly

Stats = dict[str, int | float | str]

_LEFT_OUT = {
    "files_duplicate": "files with the text of another",
    "files_skipped_undecodable": "files that are not UTF-8",
    "duplicates_removed": "rows with the text of another",
    "rows_skipped": "bad rows",
    "unanswered_dropped": "conversations without an answer in seq_len",
    "links_left_out": "symbolic links that lead nowhere or to what was read already",
}
"""What of the statistics says that text was left out."""


class Data:
    """Made by build_data; every process of a run builds the same one."""

    vocab_size: int
    eos_id: int
    """Token between documents, also end-of-text."""
    token_bytes: Tensor
    """int64 [vocab_size]: bytes of text that each token stands for, 0 for special tokens."""
    stats: Stats
    partition: Mapping[str, Any] | None
    """Rows, tokens and labels of every client, JSON-able; None where text does not belong to islands."""

    def __init__(
        self,
        config: DataConfig,
        *,
        islands: int,
        tokenizer: Tokenizer,
        validation: Windows,
        stats: Mapping[str, int | float | str],
        make_shard: Callable[[int], Shard],
        own_validation: Sequence[Windows] = (),
        partition: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> None:
        """`validation` is the held-out text; raises ConfigError if no window fits into it.

        own_validation: each island's part of it, where text belongs to islands (by_folder, or a partition).
        chat_template: the one that conversations were rendered with; it is saved with the tokenizer.
        """
        total = validation.total
        if total == 0:
            raise bad(
                "seq_len",
                config.seq_len,
                f"at most {max(validation.tokens - 1, 0)}, the held-out text has {validation.tokens} tokens",
                "shorten the sequences, raise data.validation_fraction or add text",
            )
        self.vocab_size = tokenizer.vocab_size
        self.eos_id = tokenizer.end_of_text_id
        self.token_bytes = torch.from_numpy(tokenizer.token_bytes())
        chosen = evenly(total, config.validation_sequences)
        self.stats = {**stats, "validation_sequences": len(chosen)}
        self.partition = partition
        self._windows, self._chosen = validation, chosen
        self._chat_template = chat_template
        self._config = config
        self._islands = islands
        self._tokenizer = tokenizer
        self._make_shard = make_shard
        self._own_validation = own_validation

    @property
    def tokenizer_name(self) -> str:
        """Names text-to-ids exactly: equal on machines that make the same tokens of a text."""
        return self._tokenizer.key or f"{type(self._tokenizer).__name__} {self.vocab_size}"

    def shard(self, island: int) -> Shard:
        """A new reader of the island's training text, at its beginning."""
        if not 0 <= island < self._islands:
            raise bad("shard", island, f"0 to {self._islands - 1}", "name an island of this run")
        return self._make_shard(island)

    def validation_batches(self) -> list[tuple[Tensor, Tensor]]:
        """int64 (inputs, targets) [up to batch_size, seq_len]: the same held-out windows every time."""
        return self._batches(self._windows, self._chosen)

    def own_validation_batches(self, island: int) -> list[tuple[Tensor, Tensor]]:
        """As `validation_batches`, of the island's own held-out text; none where text does not belong to islands."""
        if not self._own_validation:
            return []
        own = self._own_validation[island]
        return self._batches(own, evenly(own.total, self._config.validation_sequences))

    def _batches(self, windows: Windows, chosen: np.ndarray) -> list[tuple[Tensor, Tensor]]:
        size = self._config.batch_size
        return [windows.batch(chosen[i : i + size]) for i in range(0, len(chosen), size)]

    def described(self) -> str:
        """One line for people: how much text is learnt, what share is held out, and what was left out."""
        train, held = self.stats.get("train_bytes"), int(self.stats.get("validation_bytes", 0))
        if isinstance(train, int):
            share = f"{held / max(1, train + held):.1%}"
            text = f"data: {train:,} bytes to train on, {held:,} held out ({share})"
        else:
            text = f"data: streamed; {held:,} bytes held out for validation"
        left_out = [f"{self.stats[name]:,} {what}" for name, what in _LEFT_OUT.items() if self.stats.get(name)]
        return f"{text}; left out: {', '.join(left_out)}" if left_out else text

    def save_tokenizer(self, directory: Path) -> None:
        """Write a transformers tokenizer that AutoTokenizer.from_pretrained(directory) loads."""
        self._tokenizer.save(directory)
        if self._chat_template is not None:
            (directory / "chat_template.jinja").write_text(self._chat_template, encoding="utf-8")
