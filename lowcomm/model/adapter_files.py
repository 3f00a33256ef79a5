"""Adapter directories as peft writes them: adapter_config.json and adapter_model.safetensors, read and written.

What an adapter computes depends on its settings as much as on its factors (alpha scales them), so that all settings are
compared before one is taken as a start.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lowcomm.model.core import effective_factors
from lowcomm.model.tuning import need_peft
from lowcomm.types import ConfigError, require

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
OURS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "modules_to_save": "modules_to_save",
}
"""peft's names of settings, and LoRA's."""
FREE = {
    *(
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "peft_type",
    ),
    *("lora_dropout", "fan_in_fan_out", "megatron_core", "qalora_group_size", "ensure_weight_tying", "runtime_config"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "init_lora_weights"),
}
"""Settings of training, of loading, or of which modules are tuned and how wide: the factors' names and shapes tell."""
MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of initialisations that change base weights: their factors mean nothing on the base itself."""


def check_adapter(directory: Path, values: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the directory holds a LoRA whose settings are `values` (peft's names)."""
    field, fix = "model.tuning.adapter", "give a directory saved by peft's save_pretrained"
    for name in (WEIGHTS, SETTINGS):
        require((directory / name).is_file(), field, str(directory), f"a directory with {name}", fix)
    try:
        saved = json.loads((directory / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{field} = {str(directory)!r} has a {SETTINGS} that can't be read: {error}") from error
    kind = saved.get("peft_type") if isinstance(saved, dict) else None
    require(
        kind == "LORA", field, str(directory), f"a LoRA adapter, not {kind}", "use the tuning that it was made with"
    )
    known = cast("dict[str, Any]", need_peft().LoraConfig().to_dict())
    for name, ours in OURS.items():
        theirs, mine = saved.get(name, known[name]), values[name]
        if _plain(theirs) != _plain(mine):
            raise ConfigError(
                f"model.tuning.{ours} = {mine!r} is not allowed: {directory / SETTINGS} says {name} = {theirs!r}, "
                f"under which its factors were trained. Fix: set model.tuning.{ours} to that"
            )
    start = str(saved.get("init_lora_weights", True)).lower()
    moved = any(start.startswith(name) for name in MOVES_BASE)
    legal = f"an adapter of unchanged base weights, not of init_lora_weights = {start}"
    require(not moved, field, str(directory), legal, "convert it as peft's documentation of that method says")
    for name, theirs in saved.items():
        if name not in OURS and name not in FREE and _plain(theirs) != _plain(known.get(name)):
            raise ConfigError(
                f"{field} = {str(directory)!r} is not allowed: it has {name} = {theirs!r}, which LoRA here does not. "
                "Fix: merge it into its base model, and start from that"
            )


def _plain(value: Any) -> Any:
    """A setting without what makes no difference: order of names, and how nothing is written."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return sorted(map(str, cast("list[Any]", value))) or None
    return None if value in (None, False, {}, "", "none") else value


def load_adapter(tuned: nn.Module, directory: Path, values: Mapping[str, Any]) -> None:
    """Fill the factors of a peft model, whose settings are `values`, with those of the directory.

    Raises ConfigError where settings, names or shapes differ.
    """
    check_adapter(directory, values)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    peft = need_peft()
    try:
        saved = load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"model.tuning.adapter = {str(directory)!r} can't be read: {error}") from error
    wanted = {k: tuple(t.shape) for k, t in _state(tuned).items()}
    found = {k: tuple(t.shape) for k, t in saved.items()}
    if wanted != found:
        key = min(set(wanted.items()) ^ set(found.items()))[0]
        raise ConfigError(
            f"model.tuning.adapter = {str(directory)!r} is of another base model or other settings: {key} is "
            f"{found.get(key)} there and {wanted.get(key)} here. Fix: use its base model, rank and target modules"
        )
    peft.set_peft_model_state_dict(tuned, saved)


def save_adapter(tuned: nn.Module, directory: Path, scale: float | None = None) -> None:
    """Write a peft model's tuned values as its own `save_pretrained` does, without a model card.

    scale: alpha / r that the factors have now, where it is not that of the model's settings.
    Raises OSError or SafetensorError.
    """
    from safetensors.torch import save_file

    settings = copy.deepcopy(cast("Any", tuned).peft_config["default"])
    settings.inference_mode = True
    base = settings.base_model_name_or_path
    settings.base_model_name_or_path = str(Path(base).resolve()) if base and Path(base).is_dir() else base or None
    if scale is not None:
        settings.lora_alpha = scale * (math.sqrt(settings.r) if settings.use_rslora else settings.r)
    directory.mkdir(parents=True, exist_ok=True)
    settings.save_pretrained(str(directory))
    state = {name: t.detach().cpu().clone().contiguous() for name, t in effective_factors(_state(tuned)).items()}
    save_file(state, directory / WEIGHTS, metadata={"format": "pt"})


def _state(tuned: nn.Module) -> dict[str, Tensor]:
    """Tuned values by the names that they have on disk."""
    return cast("dict[str, Tensor]", need_peft().get_peft_model_state_dict(tuned, save_embedding_layers=False))
