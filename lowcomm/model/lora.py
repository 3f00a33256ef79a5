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

from lowcomm.model.adapter_files import check_adapter, load_adapter
from lowcomm.model.core import SmallCore
from lowcomm.model.tuning import Tuning, check_untied, matching, need_peft, nothing_matches, shape_of, wrapped
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
    targets: tuple[str, ...] | str = ("q_proj", "v_proj")
    """Tuned modules: names, ends of paths, regular expressions of whole paths, or all-linear (but for the head)."""
    dropout: float = 0.0
    """Fraction of a tuned layer's inputs that A does not see in training, 0 <= dropout < 1."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that are trained whole beside the factors (heads, embeddings, norms): ends of their paths."""
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
        fix = "('q_proj', 'v_proj'), or 'all-linear'"
        require(len(self.names) > 0 and all(self.names), "model.tuning.targets", self.targets, "at least one name", fix)
        require(0 <= self.dropout < 1, "model.tuning.dropout", self.dropout, "0 <= dropout < 1", "0.05 is usual")
        ok = all(self.modules_to_save) and not isinstance(self.modules_to_save, str)
        require(ok, "model.tuning.modules_to_save", self.modules_to_save, "names of modules", "('lm_head',)")
        ok = self.train in ("AB", "B", "core")
        require(ok, "model.tuning.train", self.train, "AB, B or core", "AB trains both factors")
        ok = not (self.dora and self.train == "core")
        require(ok, "model.tuning.dora", self.dora, "False with train='core'", "leave one of them out")
        if self.adapter is not None:
            fix = "leave out one of them: a core lies between factors of the base weight's own"
            require(self.train != "core", "model.tuning.adapter", str(self.adapter), "None with train='core'", fix)
            check_adapter(self.adapter, self.peft_values())

    @property
    def names(self) -> tuple[str, ...]:
        """`targets` one by one."""
        return (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)

    def peft_values(self) -> dict[str, Any]:
        """peft's names of the settings that an adapter on disk must have alike, but for which modules are tuned."""
        return {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "use_rslora": self.rslora,
            "use_dora": self.dora,
            "modules_to_save": list(self.modules_to_save) or None,
        }

    def apply(self, model: PreTrainedModel) -> nn.Module:
        paths = self._check_layers(model)
        plain = [name for name in self.names if any(path == name or path.endswith(f".{name}") for path in paths)]
        settings = need_peft().LoraConfig(
            **self.peft_values(),
            lora_dropout=self.dropout,
            target_modules=plain if len(plain) == len(self.names) else paths,
            task_type="CAUSAL_LM",
        )
        tuned = wrapped(model, settings, "model.tuning.targets", self.targets)
        if self.adapter is not None:
            load_adapter(tuned, self.adapter, self.peft_values())
        if self.train == "core":
            _put_cores(tuned)
        if self.train != "AB":
            _freeze_a(tuned)
        return tuned

    def _check_layers(self, model: nn.Module) -> list[str]:
        """Paths of the modules that are tuned."""
        for name in self.names:
            if not matching(model, (name,)):
                raise nothing_matches(model, "model.tuning.targets", (name,))
        found = matching(model, self.names)
        for path, module in found.items():
            shape = shape_of(module)
            if shape is None:
                raise nothing_matches(model, "model.tuning.targets", (path,))
            width = min(shape)
            fix = f"use at most {width}, or other target modules"
            require(self.rank <= width, "model.tuning.rank", self.rank, f"1 to {width}, the width of {path}", fix)
        check_untied(model, "model.tuning.targets", self.targets, found, "which a merged dW would change too")
        whole = [path for name in self.modules_to_save for path in self._whole(model, name)]
        why = "which would be trained apart from it"
        check_untied(model, "model.tuning.modules_to_save", self.modules_to_save, whole, why)
        both = sorted(set(found) & set(whole))
        legal = "modules that no target names"
        require(not both, "model.tuning.modules_to_save", self.modules_to_save, legal, f"leave out {both[:1]}")
        return list(found)

    def _whole(self, model: nn.Module, name: str) -> list[str]:
        found = [path for path, _ in model.named_modules() if path.endswith(name)]  # as peft has it, without a dot
        if not found:
            raise nothing_matches(model, "model.tuning.modules_to_save", (name,))
        return found


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
        fix = "AB or B, as the base weights are quantised and have no singular vectors to take"
        require(weight.is_floating_point(), "model.tuning.train", "core", fix, "give the unquantised model")
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
