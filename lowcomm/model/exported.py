"""The form in which a trained model is exported: the base's dtype, and weights that are not packed in few bits."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from lowcomm.model.build import ModelConfig, build_model, source_of

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""safetensors' names of dtypes in which a model can be saved whole."""


def export_dtype(config: ModelConfig) -> torch.dtype:
    """The dtype that most elements of the base's weights have on disk; fp32 for a model from scratch."""
    from safetensors import SafetensorError, safe_open

    directory = source_of(config)
    if directory is None:
        return torch.float32
    elements = dict.fromkeys(DTYPES, 0)
    try:
        for path in sorted(directory.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in cast("Any", file).keys():  # noqa: SIM118 - no mapping
                    part = cast("Any", file).get_slice(name)
                    if part.get_dtype() in elements:
                        elements[part.get_dtype()] += torch.Size(part.get_shape()).numel()
    except (OSError, SafetensorError):  # it was there when the run began
        return torch.float32
    return DTYPES[max(elements, key=lambda name: elements[name])]


@torch.no_grad()
def unpacked_copy(config: ModelConfig, trained: nn.Module, *, vocab_size: int, max_tokens: int) -> nn.Module:
    """The model on an unquantised copy of its base (fp32, CPU), with what was trained: its adapters can be merged.

    Merging into packed weights would round the change away.
    """
    whole = build_model(config, vocab_size=vocab_size, max_tokens=max_tokens, seed=0, eos_id=0, unpack=True)
    values = dict(trained.named_parameters())
    for name, p in whole.named_parameters():
        if p.requires_grad:
            p.copy_(values[name])
    return whole
