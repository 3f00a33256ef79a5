"""The shard of a stream of conversations: one per sequence, with loss on the answers only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from lowcomm.data.conversations import ChatWindows, learnable, tokenise_chats
from lowcomm.data.row_reader import IslandRows
from lowcomm.data.source import Document
from lowcomm.data.stream import StreamedShard
from lowcomm.data.template import Template
from lowcomm.data.tokenizer import Tokenizer
from lowcomm.data.tokens import Tokens
from lowcomm.types import ConfigError, DataError, counted


class ChatStreamShard(StreamedShard):
    """Conversations in the order of their rows."""

    _kind = "conversations"

    def __init__(
        self,
        rows: IslandRows,
        *,
        template: Template,
        drop_unanswered: bool,
        tokenizer: Tokenizer,
        seq_len: int,
        batch_size: int,
        identity: Mapping[str, int | str],
    ) -> None:
        self._template, self._drop = template, drop_unanswered
        super().__init__(rows, tokenizer=tokenizer, seq_len=seq_len, batch_size=batch_size, identity=identity)

    @property
    def _first(self) -> int:
        return 1

    def _waiting(self) -> int:
        return len(self._chats)

    def _add(self, document: Document) -> None:
        try:
            tokens = tokenise_chats([document], self._template, self._tokenizer.vocab_size)
            kept = learnable([document], tokens, self._seq_len, self._drop)
        except ConfigError as error:
            raise DataError(str(error)) from error
        if kept.all():
            self._chats.append(tokens)

    def _kept(self) -> Any:
        return list(self._chats)

    def _keep(self, waiting: Any) -> None:
        self._chats: list[Tokens] = waiting

    def _too_few(self, found: int) -> bool:
        return found == 0

    def prepare(self, batches: int) -> None:
        self._fill(batches * self._batch_size)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        self._fill(self._batch_size)
        chosen, self._chats = self._chats[: self._batch_size], self._chats[self._batch_size :]
        windows = windows_of(chosen, self._seq_len, self._tokenizer.end_of_text_id)
        inputs, targets = windows.batch(np.arange(len(chosen)))
        self._tokens += counted(targets)
        return inputs, targets

    def _leftover_state(self) -> list[Any]:
        return [[chat.stream.tolist(), np.asarray(chat.answers).astype(int).tolist()] for chat in self._chats]

    def _leftover_of(self, state: list[Any]) -> Any:
        chats: list[Tokens] = []
        for ids, answers in state:
            stream, mask = self._checked(ids), np.array(answers, dtype=bool)
            if stream.shape != mask.shape:
                raise ValueError("ids and answers differ in length")
            chats.append(Tokens(stream=stream, lengths=np.array([len(stream)]), answers=mask))
        return chats


def windows_of(chats: list[Tokens], seq_len: int, padding_id: int) -> ChatWindows:
    """A window of each conversation."""
    answers = [chat.answers for chat in chats if chat.answers is not None]
    tokens = Tokens(
        stream=np.concatenate([chat.stream for chat in chats]),
        lengths=np.concatenate([chat.lengths for chat in chats]),
        answers=np.concatenate(answers),
    )
    return ChatWindows(tokens, np.arange(len(chats)), seq_len, padding_id)
