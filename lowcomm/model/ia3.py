"""IA3: learnt scales of keys, values and the feed-forward, through peft.

Liu et al., (IA)^3, arXiv 2205.05638: k <- l_k * k, v <- l_v * v, h <- l_ff * h, all l start at one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lowcomm.model.tuning import Tuning, matching, need_peft, nothing_matches, wrapped
from lowcomm.types import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class IA3(Tuning):
    """One scale per channel of some layers: far fewer parameters than LoRA."""

    targets: tuple[str, ...] = ("k_proj", "v_proj", "down_proj")
    """Names of the scaled modules."""
    feedforward: tuple[str, ...] = ("down_proj",)
    """Those of them whose input is scaled instead of their output."""

    def check(self) -> None:
        fix = "('k_proj', 'v_proj', 'down_proj')"
        require(len(self.targets) > 0, "model.tuning.targets", self.targets, "at least one name", fix)
        ok = set(self.feedforward) <= set(self.targets)
        require(ok, "model.tuning.feedforward", self.feedforward, f"some of the targets {self.targets}", "correct it")

    def apply(self, model: PreTrainedModel) -> nn.Module:
        for name in self.targets:
            if not matching(model, (name,)):
                raise nothing_matches(model, "model.tuning.targets", (name,))
        feedforward = matching(model, self.feedforward) if self.feedforward else {}
        settings = need_peft().IA3Config(
            target_modules=list(matching(model, self.targets)),
            feedforward_modules=list(feedforward),
            task_type="CAUSAL_LM",
        )
        return wrapped(model, settings, "model.tuning.targets", self.targets)
