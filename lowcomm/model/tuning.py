"""What is tuned: all parameters, or a small part of them on a frozen base (peft)."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from lowcomm.types import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Tuning(ABC):
    """A frozen dataclass of settings; `apply` leaves what is tuned as the only trainable parameters."""

    @abstractmethod
    def check(self) -> None:
        """Raise ConfigError for a setting out of range."""

    @abstractmethod
    def apply(self, model: PreTrainedModel) -> nn.Module:
        """The model with its base frozen; new values are drawn from torch's generator, which the caller seeds.

        Raises ConfigError where the settings do not fit this model.
        """


def need_peft() -> Any:
    """The peft library; raises ConfigError with the extra to install."""
    try:
        import peft
    except ImportError as error:
        raise ConfigError(f"peft cannot be imported ({error}). Fix: pip install 'lowcomm[peft]'") from error
    return peft


def wrapped(model: PreTrainedModel, settings: Any, field: str, value: object) -> nn.Module:
    """peft's model around `model`; its errors become one line that names the field."""
    peft = need_peft()
    try:
        with warnings.catch_warnings():
            # peft 0.21 asks for a name that transformers 5.23 is about to drop
            warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # it sets that right by itself
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            return cast("nn.Module", peft.get_peft_model(model, settings))
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{field} = {value!r} does not fit the model: {cause} Fix: name modules of this model"
        ) from error


def matching(model: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Module]:
    """Modules whose name is one of `names`, or ends with one after a dot: as peft matches a list."""
    return {
        path: module
        for path, module in model.named_modules()
        if any(path == name or path.endswith(f".{name}") for name in names)
    }


def nothing_matches(model: nn.Module, field: str, names: tuple[str, ...]) -> ConfigError:
    """The error for names that match no module."""
    known = sorted({path.rpartition(".")[2] for path, m in model.named_modules() if _tunable(m)} - {""})
    return ConfigError(
        f"{field} = {names!r} is not allowed: it matches no layer of the model. Fix: use some of {known}"
    )


def _tunable(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), nn.Parameter) and getattr(module, "weight").dim() == 2  # noqa: B009


def merge_tuning(model: nn.Module) -> nn.Module:
    """A copy of a tuned model with LoRA, DoRA or IA3 in its base weights; any other model as it is.

    Prompt tuning has nothing to merge and stays peft's model, which saves its prompt.
    """
    if not type(model).__module__.startswith("peft."):
        return model
    merged = copy.deepcopy(model)
    for module in merged.modules():
        base = module._modules.get("base_layer")
        if base is not None and "weight" in base._buffers:
            _as_parameter(base)
    merge = getattr(merged, "merge_and_unload", None)
    mergeable = merge is not None and hasattr(getattr(merged, "base_model", None), "merge_adapter")
    return cast("nn.Module", merge()) if mergeable and merge is not None else merged


def _as_parameter(module: nn.Module) -> None:
    """A base weight that a rule changed is a buffer while training; saved models have parameters."""
    weight = module._buffers.pop("weight")
    module._non_persistent_buffers_set.discard("weight")
    assert weight is not None
    module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
