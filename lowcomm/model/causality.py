"""The proof that a model predicts: a later token must not change what comes out at an earlier position.

An encoder (BERT), a prefix model or a mask left out sees the targets that it is trained on: its loss means nothing. Two
forward passes of a few tokens find it, whatever the architecture says of itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from lowcomm.types import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 16
"""Tokens that are looked at: few, so that one of them weighs much in any mean over positions."""
TOLERANCE = 1e-3
"""Of the spread of logits: rounding is 1e-6 of it, what an untrained encoder leaks of one token in sixteen 1e-2."""


@torch.no_grad()
def check_causal(model: PreTrainedModel, field: str, value: object, *, vocab_size: int, max_tokens: int) -> None:
    """Raise ConfigError for a model whose logits depend on later tokens, or that can't be run on token ids alone.

    vocab_size: ids that text may have. Neither weights, mode nor random state of the model change.
    """
    training = model.training
    model.eval()
    try:
        spread, leaked = _leak(model, min(TOKENS, max_tokens), vocab_size)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError) as error:
        raise ConfigError(
            f"{field} = {value!r} is not allowed: {type(model).__name__} does not run on token ids: "
            f"{first_line(error)} Fix: give a decoder-only causal LM"
        ) from error
    finally:
        model.train(training)
    if not math.isfinite(spread + leaked):
        raise ConfigError(
            f"{field} = {value!r} is not allowed: its logits are not finite, so that there is nothing to train. "
            "Fix: give a directory with sound weights"
        )
    if leaked > TOLERANCE * spread:
        raise ConfigError(
            f"{field} = {value!r} is not allowed: {type(model).__name__} sees the tokens that it is to predict: a "
            "later one changes earlier outputs. Fix: give a causal LM (of BERT's kind: one with is_decoder = true)"
        )


def _leak(model: PreTrainedModel, tokens: int, vocab_size: int) -> tuple[float, float]:
    """(spread of the logits, largest change of a logit before the place where tokens were changed)."""
    if tokens < 2:
        return 1.0, 0.0
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (1, tokens), generator=generator)
    device = next(model.parameters()).device
    first = _logits(model, ids.to(device))
    spread, leaked = float(first.std()), 0.0
    for start in (tokens - 1, tokens // 2):
        changed = ids.clone()
        changed[:, start:] = (ids[:, start:] + 1 + vocab_size // 2) % vocab_size
        after = _logits(model, changed.to(device))
        leaked = max(leaked, float((after - first)[:, :start].abs().max()))
    return spread, leaked


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return cast("Tensor", model(input_ids=ids, use_cache=False).logits).float()[:, -ids.shape[1] :]


def first_line(error: Exception) -> str:
    """The first line of an error of another library, as a sentence."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].strip()
    return line if line.endswith((".", "!", "?")) else f"{line}."
