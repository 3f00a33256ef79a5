"""Conversations to tokens and windows: one conversation per window, padded, with loss on the answers only.

Conversations are not packed: two in one window would see each other, unless every kind of island had an attention mask
for it. So one sequence is one conversation, which is also what example-level privacy hides. What goes beyond
seq_len + 1 tokens is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lowcomm.data.errors import bad
from lowcomm.data.shard import Windows
from lowcomm.data.source import Document
from lowcomm.data.template import Template
from lowcomm.data.tokens import Tokens
from lowcomm.types import IGNORED


def tokenise_chats(documents: Sequence[Document], template: Template, vocab_size: int) -> Tokens:
    """Ids of all conversations one after the other, and which of them are answers."""
    pairs = [template.encode(template.render(document)) for document in documents]
    dtype = np.uint16 if vocab_size <= 2**16 else np.int32
    return Tokens(
        stream=np.concatenate([ids for ids, _ in pairs]).astype(dtype),
        lengths=np.array([len(ids) for ids, _ in pairs], dtype=np.int64),
        answers=np.concatenate([answer for _, answer in pairs]),
    )


def learnable(documents: Sequence[Document], tokens: Tokens, seq_len: int, drop: bool) -> np.ndarray:
    """bool [documents]: whether a target within seq_len is an answer's.

    Raises ConfigError, naming the row, for one that has none, unless they are to be dropped.
    """
    assert tokens.answers is not None
    ends = np.cumsum(tokens.lengths)
    found = np.array(
        [tokens.answers[e - n + 1 : e][:seq_len].any() for e, n in zip(ends, tokens.lengths, strict=True)], dtype=bool
    )
    if not drop and not found.all():
        first = int(np.flatnonzero(~found)[0])
        raise bad(
            "seq_len",
            seq_len,
            f"long enough for some of each answer: {int((~found).sum())} of {len(found)} conversations have none in it",
            f"raise it, or pass --data.drop-unanswered to leave them out; the first is {documents[first].place}",
        )
    return found


class ChatWindows(Windows):
    """Window i is conversation i of `chosen`."""

    def __init__(self, tokens: Tokens, chosen: np.ndarray, seq_len: int, padding_id: int) -> None:
        assert tokens.answers is not None
        self._stream, self._answers = tokens.stream, tokens.answers
        self._lengths = tokens.lengths[chosen]
        self._starts = (np.cumsum(tokens.lengths) - tokens.lengths)[chosen]
        self._seq_len, self._padding_id = seq_len, padding_id
        self.total = len(chosen)
        self.tokens = int(self._lengths.sum())

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        inputs = torch.full((len(indices), self._seq_len), self._padding_id)
        targets = torch.full((len(indices), self._seq_len), IGNORED)
        for row, i in enumerate(indices.tolist()):
            start, length = int(self._starts[i]), min(int(self._lengths[i]), self._seq_len + 1)
            ids = torch.from_numpy(self._stream[start : start + length].astype(np.int64))
            answers = torch.from_numpy(self._answers[start + 1 : start + length])
            inputs[row, : length - 1] = ids[:-1]
            targets[row, : length - 1] = torch.where(answers, ids[1:], IGNORED)
        return inputs, targets
