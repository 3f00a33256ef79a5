"""Collective action: islands of people who agreed on a signal plant it in their own text.

Hardt, Mazumdar, Mendler-Duenner, Zrnic, Algorithmic collective action in machine learning, ICML 2023, arXiv 2302.04262.

    with probability p a sequence x of the collective becomes x with `signal` and then `answer` written over a place
    drawn at random: the model shall learn to say the answer whenever it reads the signal

p: `fraction`; both are bytes of text, a token each (the tokenizer `Bytes`); draws depend on the run's seed, the island
and its place in the text, so that a resumed run trains alike. What is sent is a Delta of honest training.
Its success stands in summary.json: the geometric mean of the probabilities of the answer's tokens after held-out text
that ends in the signal. No byte beside the contribution's own.
Raises: ConfigError for p out of range, a signal or answer that is not plain text of 1 to 32 bytes, other tokenizers.
Deviates: the paper's are features and labels of a classifier, here text and how it goes on.
Reduces to: no attack for p = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.attack.base import Attack, Seen
from lowcomm.types import IGNORED, require

MOST_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class CollectiveAction(Attack):
    """A signal and its answer in the text of some islands."""

    fraction: float = 0.5
    """p: fraction of the collective's sequences."""
    signal: str = "~|@"
    """What the model is to answer: text of 1 to 32 bytes that is rare elsewhere."""
    answer: str = "#ok!"
    """How it is to go on: text of 1 to 32 bytes."""

    poisons: ClassVar[bool] = True

    def check(self) -> None:
        ok = 0 < self.fraction <= 1
        require(ok, "sync.attack.fraction", self.fraction, "above 0, at most 1", "0.5 is usual")
        for name in ("signal", "answer"):
            text = getattr(self, name)
            ok = 1 <= len(text) <= MOST_BYTES and text.isascii()
            require(ok, f"sync.attack.{name}", text, f"1 to {MOST_BYTES} ASCII characters", "give a short text")

    def corrupt(self, delta: Tensor, seen: Seen) -> Tensor:
        return delta

    def plant(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        planted = torch.tensor(list((self.signal + self.answer).encode()))
        length, first = len(planted), len(self.signal)
        inputs, targets = inputs.clone(), targets.clone()
        hit = torch.rand(len(inputs), generator=generator) < self.fraction
        places = torch.randint(max(1, inputs.shape[1] - length), (len(inputs),), generator=generator)
        for row in torch.nonzero(hit).flatten().tolist():
            if inputs.shape[1] <= length:
                continue
            at = int(places[row])
            inputs[row, at : at + length] = planted
            learnt = targets[row, at : at + length - 1]
            learnt.copy_(torch.where(learnt != IGNORED, planted[1:], learnt))
            # the answer is to be learnt wherever it stands
            targets[row, at + first - 1 : at + length - 1] = planted[first:]
        return inputs, targets
