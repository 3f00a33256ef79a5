"""What is tuned: all parameters, or a small part of them on a frozen base (peft)."""

from __future__ import annotations

import copy
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

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


ALL_LINEAR = "all-linear"
"""In the place of names: every linear layer but the output head, as peft has it."""


def matching(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Modules that one of `names` means: their name, the end of their path after a dot, a regular expression of the
    whole path, or "all-linear".

    Raises ConfigError for a name that is no regular expression either.
    """
    found: dict[str, nn.Module] = {}
    linear = _linear_layers(model) if ALL_LINEAR in names else set[str]()
    try:
        patterns = [re.compile(name) for name in names]
    except re.error as error:
        raise ConfigError(
            f"model.tuning.targets = {tuple(names)!r} is not allowed: {error.pattern!r} is no regular expression "
            f"({error.msg}). Fix: name modules of the model, or mend it"
        ) from error
    for path, module in model.named_modules():
        named = any(path == name or path.endswith(f".{name}") for name in names)
        if named or path in linear or any(pattern.fullmatch(path) for pattern in patterns):
            found[path] = module
    return found


def _linear_layers(model: nn.Module) -> set[str]:
    """Paths of linear layers, quantised ones and GPT-2's Conv1D too, without the output head."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # pyright: ignore[reportCallIssue]
    return {
        path
        for path, m in model.named_modules()
        if m is not head and (isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D" or hasattr(m, "qweight"))
    }


def shape_of(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a layer with a matrix, however its weight is packed; None for any other module."""
    sizes = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if isinstance(sizes[0], int) and isinstance(sizes[1], int):
        return sizes[0], sizes[1]
    weight = getattr(module, "weight", None)
    return (weight.shape[0], weight.shape[1]) if isinstance(weight, Tensor) and weight.dim() == 2 else None


def check_untied(model: nn.Module, field: str, value: object, paths: Iterable[str], why: str) -> None:
    """Raise ConfigError for a module whose weight another one shares."""
    for path in paths:
        module = model.get_submodule(path)
        weights = {id(p) for p in module.parameters()}
        inside = {id(m) for m in module.modules()}
        for name, other in model.named_modules():
            shared = any(id(p) in weights for p in other.parameters(recurse=False))
            if shared and id(other) not in inside:
                raise ConfigError(
                    f"{field} = {value!r} is not allowed: {path} shares its weight with {name} (tied), {why}. "
                    "Fix: leave it out, or untie the weights"
                )


def nothing_matches(model: nn.Module, field: str, names: Sequence[str]) -> ConfigError:
    """The error for names that match no module."""
    known = sorted({path.rpartition(".")[2] for path, m in model.named_modules() if shape_of(m) is not None} - {""})
    return ConfigError(
        f"{field} = {tuple(names)!r} is not allowed: it matches no layer of the model. Fix: use some of {known}"
    )


def is_tuned(model: nn.Module) -> bool:
    """Whether it is peft's model, whose tuned values can be saved alone."""
    return type(model).__module__.startswith("peft.")


def merge_tuning(model: nn.Module) -> nn.Module:
    """A copy of a tuned model with LoRA, DoRA or IA3 in its base weights; any other model as it is.

    Prompt tuning has nothing to merge and stays peft's model, which saves its prompt.
    """
    if not is_tuned(model):
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
