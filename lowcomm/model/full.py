"""Full-parameter training: nothing is frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lowcomm.model.tuning import Tuning

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Full(Tuning):
    """Every parameter is trained."""

    def check(self) -> None:
        return None

    def apply(self, model: PreTrainedModel) -> nn.Module:
        return model
