"""One stage of a Llama-shaped causal LM: some of its layers, under the names that they have in the whole model."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lowcomm.types import ConfigError, require


class StageModule(nn.Module):
    """Token ids or hidden states in, hidden states or logits out.

    int64 [batch, seq_len] (first stage) or float [batch, seq_len, hidden] -> [batch, seq_len, hidden], or
    [batch, seq_len, vocabulary] from the last stage.
    """

    def __init__(self, whole: nn.Module, index: int, count: int) -> None:
        """Takes over the layers of `whole` that belong to stage `index` of `count`."""
        super().__init__()
        model = _decoder(whole)
        layers = list(cast("nn.ModuleList", model.layers))
        legal = f"at most the model's {len(layers)} layers"
        require(count <= len(layers), "island.size", count, legal, "use smaller islands or another kind")
        bounds = [round(i * len(layers) / count) for i in range(count + 1)]
        self.config = cast("Any", whole).config
        self.first, self.last = index == 0, index == count - 1
        self.model = nn.Module()
        if self.first:
            self.model.embed_tokens = model.embed_tokens
        kept = range(bounds[index], bounds[index + 1])
        self.model.layers = nn.ModuleDict({str(i): layers[i] for i in kept})
        self.model.rotary_emb = model.rotary_emb
        if self.last:
            self.model.norm = model.norm
            self.lm_head = cast("nn.Module", whole.lm_head)

    def forward(self, x: Tensor) -> Tensor:
        parts = cast("Any", self.model)
        hidden = parts.embed_tokens(x) if self.first else x
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rotary = parts.rotary_emb(hidden, position_ids=positions)
        for layer in parts.layers.values():
            hidden = layer(hidden, attention_mask=None, position_embeddings=rotary, position_ids=positions)
        return self.lm_head(parts.norm(hidden)) if self.last else hidden

    def get_output_embeddings(self) -> nn.Module | None:
        """As transformers' models have it: an optimizer may treat output weights unlike hidden matrices."""
        return self.lm_head if self.last else None


def _decoder(whole: nn.Module) -> Any:
    """The part of a causal LM below its output weights. Raises ConfigError if it can't be cut into stages."""
    model = getattr(whole, "model", None)
    missing = [n for n in ("embed_tokens", "layers", "norm", "rotary_emb") if not hasattr(model, n)]
    if missing or not hasattr(whole, "lm_head"):
        raise ConfigError(
            f"island.kind = 'pipeline' is not allowed for {type(whole).__name__}, which has no "
            f"{(missing or ['lm_head'])[0]}. Fix: a Llama-shaped model, or --island.kind fsdp"
        )
    if cast("Any", whole).config.tie_word_embeddings:
        raise ConfigError(
            "island.kind = 'pipeline' is not allowed with tied embeddings, which lie on the first and the last stage. "
            "Fix: --model.tied-embeddings False"
        )
    return model
