"""Prompt tuning: some learnt vectors before every sequence, through peft. Lester et al., arXiv 2104.08691."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lowcomm.model.tuning import Tuning, need_peft, wrapped
from lowcomm.types import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Prompt(Tuning):
    """Virtual tokens in front of the input; the model itself stays as it is."""

    tokens: int = 16
    """Virtual tokens; they take that many positions of the model."""

    def check(self) -> None:
        require(self.tokens >= 1, "model.tuning.tokens", self.tokens, "1 or more", "16 is usual")

    def apply(self, model: PreTrainedModel) -> nn.Module:
        said = int(getattr(model.config, "max_position_embeddings", None) or 0)
        longest = said if said > 0 else self.tokens + 1
        legal = f"1 to {longest - 1}, the model has {longest} positions"
        require(self.tokens < longest, "model.tuning.tokens", self.tokens, legal, "use fewer")
        settings = need_peft().PromptTuningConfig(num_virtual_tokens=self.tokens, task_type="CAUSAL_LM")
        return wrapped(model, settings, "model.tuning.tokens", self.tokens)
