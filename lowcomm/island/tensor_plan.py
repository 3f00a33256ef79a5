"""The tensor parallel plan that a transformers model brings along, as styles of torch.distributed.tensor.parallel.

transformers names a style for each linear map by pattern (`model._tp_plan`, from `config.base_model_tp_plan`):
column-wise ones make a part of their outputs on each rank, row-wise ones after them read it and sum over the ranks.
Embeddings and output weights stay whole on every rank where they are one tensor or the vocabulary does not divide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from lowcomm.types import ConfigError

COLUMNS, ROWS = ("colwise",), ("rowwise",)
HEAD, EMBEDDING = ("colwise_rep", "colwise_gather_output"), ("embedding_rowwise",)
SUMMED = ("replicated_with_grad_allreduce",)
"""Whole on every rank, but each sees only its heads: gradients are summed."""
STYLES = (*COLUMNS, *ROWS, *HEAD, *EMBEDDING, *SUMMED)
FIX = "Fix: --island.kind fsdp"


def plan_of(model: nn.Module, size: int) -> dict[str, str]:
    """Style by module name for islands of `size` ranks.

    Raises ConfigError for a model without a plan, with a style or module that is not known here, or whose sizes do not
    divide.
    """
    refused = f"island.kind = 'tensor' is not allowed for {type(model).__name__}"
    patterns = cast("Mapping[str, str]", getattr(model, "_tp_plan", None) or {})
    modules = dict(model.named_modules())
    found = {n: s for n in modules if n and (s := _style(n, patterns)) is not None}
    if not any(style in COLUMNS + ROWS for style in found.values()):
        raise ConfigError(f"{refused}, which brings no tensor parallel plan (model._tp_plan). {FIX}")
    _check_heads(model, size)
    whole = _stays_whole(model, size)
    plan: dict[str, str] = {}
    for name, style in found.items():
        module = modules[name]
        if style not in STYLES:
            raise ConfigError(f"{refused}: its plan has the style {style!r} for {name}, not one of {STYLES}. {FIX}")
        if id(getattr(module, "weight", None)) in whole:
            continue
        if style not in SUMMED:
            _check_module(name, style, module, size, refused)
        plan[name] = style
    return plan


def parallel_style(style: str) -> Any:
    """The ParallelStyle of a style that cuts."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    if style in ROWS:
        return RowwiseParallel()
    if style in EMBEDDING:
        return RowwiseParallel(input_layouts=Replicate())
    return ColwiseParallel(output_layouts=Replicate()) if style in HEAD else ColwiseParallel()


def _style(name: str, patterns: Mapping[str, str]) -> str | None:
    """Patterns have `*` where a layer's number is."""
    for pattern, style in patterns.items():
        if re.fullmatch(re.escape(pattern).replace(r"\*", r"\d+"), name):
            return style
    return None


def _check_heads(model: nn.Module, size: int) -> None:
    config = getattr(model, "config", None)
    for field in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, field, None)
        if isinstance(heads, int) and heads % size:
            raise ConfigError(
                f"island.size = {size} is not allowed with island.kind = 'tensor': the model's {field} = {heads} does "
                f"not divide by it. Fix: pass a divisor of {heads}, or --island.kind fsdp"
            )


def _check_module(name: str, style: str, module: nn.Module, size: int, refused: str) -> None:
    legal = nn.Embedding if style in EMBEDDING else nn.Linear
    if not isinstance(module, legal):
        raise ConfigError(f"{refused}: {name} is a {type(module).__name__}, not a {legal.__name__}. {FIX}")
    length = module.weight.shape[1 if style in ROWS else 0]
    if length % size:
        raise ConfigError(
            f"island.size = {size} is not allowed with island.kind = 'tensor': {name} has {length} "
            f"{'inputs' if style in ROWS else 'outputs'}, which do not divide by it. {FIX}"
        )


def _stays_whole(model: nn.Module, size: int) -> set[int]:
    """Identities of embeddings and output weights that are not cut."""
    ends = [getattr(getattr(model, get, lambda: None)(), "weight", None) for get in GETTERS]
    weights = [w for w in ends if w is not None]
    tied = len(weights) == 2 and weights[0] is weights[1]
    return {id(w) for w in weights if tied or w.shape[0] % size}


GETTERS = ("get_input_embeddings", "get_output_embeddings")
