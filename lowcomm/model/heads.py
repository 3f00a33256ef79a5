"""Linear probing: whole modules, such as the head, are trained and the rest is frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lowcomm.model.tuning import Tuning, matching, nothing_matches
from lowcomm.types import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Heads(Tuning):
    """Some modules as they are; a head that shares its weight with the embedding trains both."""

    modules: tuple[str, ...] = ("lm_head",)
    """Names of the modules that are trained, or the ends of their paths."""

    def check(self) -> None:
        require(len(self.modules) > 0, "model.tuning.modules", self.modules, "at least one name", "('lm_head',)")

    def apply(self, model: PreTrainedModel) -> nn.Module:
        for name in self.modules:
            if not matching(model, (name,)):
                raise nothing_matches(model, "model.tuning.modules", (name,))
        model.requires_grad_(False)
        for module in matching(model, self.modules).values():
            module.requires_grad_(True)
        return model
