"""LoRA, rsLoRA and DoRA on a frozen base model, through peft.

Hu et al., LoRA, arXiv 2106.09685; Kalajdzievski, rsLoRA, arXiv 2312.03732; Liu et al., DoRA, arXiv 2402.09353.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from lowcomm.model.core import SmallCore
from lowcomm.model.tuning import Tuning, matching, need_peft, nothing_matches, wrapped
from lowcomm.types import ConfigError, require

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class LoRA(Tuning):
    """dW = alpha / rank B A beside the weights of some layers."""

    rank: int = 8
    """Rank of A and B, up to the narrowest tuned layer's width."""
    alpha: float = 16.0
    """Scale of dW: alpha / rank, or alpha / sqrt(rank) with `rslora`."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank)."""
    dora: bool = False
    """Also train each row's magnitude (DoRA)."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the tuned modules, or the ends of their paths."""
    train: Literal["AB", "B", "core"] = "AB"
    """Factors that are trained: both; B on a frozen A (FFA-LoRA); an r x r core between frozen A and B (Fed-SB)."""
    adapter: Path | None = None
    """peft adapter directory (safetensors) to start from; None: A random, B zero."""

    @property
    def scale(self) -> float:
        """alpha / rank or alpha / sqrt(rank)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def check(self) -> None:
        require(self.rank >= 1, "model.tuning.rank", self.rank, "1 or more", "8 is usual")
        ok = math.isfinite(self.alpha) and self.alpha > 0
        require(ok, "model.tuning.alpha", self.alpha, "a finite number above 0", "twice the rank is usual")
        require(
            len(self.targets) > 0, "model.tuning.targets", self.targets, "at least one name", "('q_proj', 'v_proj')"
        )
        ok = self.train in ("AB", "B", "core")
        require(ok, "model.tuning.train", self.train, "AB, B or core", "AB trains both factors")
        ok = not (self.dora and self.train == "core")
        require(ok, "model.tuning.dora", self.dora, "False with train='core'", "leave one of them out")
        if self.adapter is not None:
            is_adapter = (self.adapter / "adapter_model.safetensors").is_file()
            fix = "give a directory saved by peft's save_pretrained"
            legal = "a directory with adapter_model.safetensors"
            require(is_adapter, "model.tuning.adapter", str(self.adapter), legal, fix)

    def apply(self, model: PreTrainedModel) -> nn.Module:
        self._check_layers(model)
        settings = need_peft().LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            use_rslora=self.rslora,
            use_dora=self.dora,
            target_modules=list(self.targets),
            task_type="CAUSAL_LM",
        )
        tuned = wrapped(model, settings, "model.tuning.targets", self.targets)
        if self.adapter is not None:
            self._load(tuned, self.adapter)
        if self.train == "core":
            _put_cores(tuned)
        if self.train != "AB":
            _freeze_a(tuned)
        return tuned

    def _check_layers(self, model: nn.Module) -> None:
        for name in self.targets:
            if not matching(model, (name,)):
                raise nothing_matches(model, "model.tuning.targets", (name,))
        for path, module in matching(model, self.targets).items():
            weight = getattr(module, "weight", None)
            if not isinstance(weight, Tensor) or weight.dim() != 2:
                raise nothing_matches(model, "model.tuning.targets", (path,))
            width = min(weight.shape)
            sharing = [n for n, m in model.named_modules() if m is not module and getattr(m, "weight", None) is weight]
            if sharing:
                raise ConfigError(
                    f"model.tuning.targets = {self.targets!r} is not allowed: {path} shares its weight with "
                    f"{sharing[0]} (tied), which a merged dW would change too. Fix: leave it out, or untie the weights"
                )
            fix = f"use at most {width}, or other target modules"
            require(self.rank <= width, "model.tuning.rank", self.rank, f"1 to {width}, the width of {path}", fix)

    def _load(self, tuned: nn.Module, directory: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        peft = need_peft()
        try:
            saved = load_file(directory / "adapter_model.safetensors")
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"model.tuning.adapter = {str(directory)!r} can't be read: {error}") from error
        wanted = {k: tuple(t.shape) for k, t in cast("dict[str, Any]", peft.get_peft_model_state_dict(tuned)).items()}
        found = {k: tuple(t.shape) for k, t in saved.items()}
        if wanted != found:
            key = min(set(wanted.items()) ^ set(found.items()))[0]
            raise ConfigError(
                f"model.tuning.adapter = {str(directory)!r} is of another base model or other settings: {key} is "
                f"{found.get(key)} there and {wanted.get(key)} here. Fix: use its base model, rank and target modules"
            )
        peft.set_peft_model_state_dict(tuned, saved)


def lora_layers(model: nn.Module) -> list[nn.Module]:
    """The modules that carry LoRA factors. Raises ConfigError if there are none: nothing could be frozen in them."""
    found = [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]
    if not found:
        raise ConfigError("the model has no LoRA layers yet. Fix: put the adapters in before their A is frozen")
    return found


def _freeze_a(model: nn.Module) -> None:
    """Freeze every A; called before adapters exist it would freeze nothing, unseen: hence the check, after it too."""
    for module in lora_layers(model):
        for factors in (module.lora_A, module.lora_embedding_A):
            for p in cast("nn.Module", factors).parameters():
                p.requires_grad_(False)
    for module in lora_layers(model):
        _start_from_b(
            cast("nn.ParameterDict", module.lora_embedding_A), cast("nn.ParameterDict", module.lora_embedding_B)
        )
    left = [n for n, p in model.named_parameters() if p.requires_grad and (".lora_A." in n or "embedding_A" in n)]
    assert not left, left


def _start_from_b(a: nn.ParameterDict, b: nn.ParameterDict) -> None:
    """peft starts embeddings with A zero and B random: with A frozen there, B would never get a gradient."""
    for adapter in a:
        if not bool(a[adapter].any()):
            a[adapter].data.normal_(std=1 / math.sqrt(a[adapter].shape[0]))
            b[adapter].data.zero_()


def _put_cores(model: nn.Module) -> None:
    """Replace each B by B R: A and B frozen at the base weight's leading singular vectors, R zero and trainable."""
    for module in lora_layers(model):
        base = cast("nn.Module", module.base_layer)
        weight = cast("Tensor", base.weight).detach()
        linear = cast("nn.ModuleDict", module.lora_B)
        require(len(linear) > 0, "model.tuning.train", "core", "AB or B for embeddings", "tune linear layers")
        oriented = weight.T if bool(getattr(module, "fan_in_fan_out", False)) else weight  # [out, in]
        for adapter, old in list(linear.items()):
            rank = cast("Tensor", old.weight).shape[1]
            left, _, right = torch.linalg.svd(oriented.double(), full_matrices=False)
            largest = left.gather(0, left.abs().argmax(dim=0, keepdim=True))
            sign = torch.where(largest < 0, -1.0, 1.0).double()
            left, right = left * sign, right * sign.T
            first = cast("nn.Module", cast("nn.ModuleDict", module.lora_A)[adapter])
            cast("Tensor", first.weight).data.copy_(right[:rank])
            linear[adapter] = SmallCore(left[:, :rank].to(weight.dtype))
