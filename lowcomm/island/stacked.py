"""One model with the weights of n islands: every parameter gets a leading axis [islands, ...].

Attention, activations and losses work row by row, so that the rows of all islands can go through them together, island
after island: inputs are [islands * batch, seq_len]. Only what holds weights differs: linear layers become one batched
product, an embedding looks up in the tables laid end to end, a norm's scale is broadcast over its island's rows. The
rest of the model, here of transformers, runs as it is.

`stack` moves the islands' own parameters: they become views of the stacked ones, so that whatever changes an island's
model (an optimizer, a sync, a checkpoint) changes the stacked model, and the other way round.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowcomm.types import ConfigError

Losses = Callable[[nn.Module, Tensor, Tensor], Tensor]
FIX = "leave out --batched"


class StackedLinear(nn.Module):
    """`y = x W^T + b` with weight [islands, out, in] and bias [islands, out]; x: [islands * batch, ..., in]."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, transposed: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.transposed = weight, bias, transposed

    def forward(self, x: Tensor) -> Tensor:
        rows = _by_island(x, self.weight.shape[0]).flatten(1, -2)
        if self.transposed:
            y = torch.bmm(rows, self.weight)
        else:
            y = cast("Tensor", _Product.apply(rows, self.weight))
        y = y if self.bias is None else y + self.bias.unsqueeze(1)
        return y.view(*x.shape[:-1], y.shape[-1])


class _Product(torch.autograd.Function):
    """`x W^T` island by island; the gradient of W comes in W's own layout, which saves a strided copy of it."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return torch.bmm(x, weight.transpose(1, 2))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,) = grad_outputs
        x, weight = ctx.saved_tensors
        for_x, for_weight = ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if for_x else None,
            torch.bmm(grad.transpose(1, 2), x) if for_weight else None,
        )


class StackedEmbedding(nn.Module):
    """Lookup in a table [islands, rows, width]; ids: int64 [islands * batch, ...]."""

    def __init__(self, weight: nn.Parameter, padding_id: int | None) -> None:
        super().__init__()
        self.weight, self.padding_id = weight, padding_id
        self.offsets = nn.Buffer(torch.arange(weight.shape[0]) * weight.shape[1], persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        own = _by_island(ids, self.weight.shape[0])
        offsets = self.offsets.to(ids.device).view(-1, *[1] * (own.ndim - 1))
        found = F.embedding((own + offsets).flatten(0, 1), self.weight.flatten(0, 1))
        if self.padding_id is None:
            return found
        return torch.where((ids == self.padding_id).unsqueeze(-1), found.detach(), found)  # padding is not trained


class StackedNorm(nn.Module):
    """A norm over the last axis whose weight [islands, width] (and bias) the original module broadcasts or is given."""

    def __init__(self, norm: nn.Module, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias, self.norm = weight, bias, norm
        del norm._parameters["weight"]

    def forward(self, x: Tensor) -> Tensor:
        own = _by_island(x, self.weight.shape[0])
        shape = (-1, *[1] * (own.ndim - 2), self.weight.shape[-1])
        norm = self.norm
        if isinstance(norm, nn.LayerNorm):
            y = F.layer_norm(own, norm.normalized_shape, None, None, norm.eps) * self.weight.view(shape)
            y = y if self.bias is None else y + self.bias.view(shape)
        elif isinstance(norm, nn.RMSNorm):
            y = F.rms_norm(own, norm.normalized_shape, None, norm.eps) * self.weight.view(shape)
        else:
            norm.weight = self.weight.view(shape)
            y = norm(own)
        return y.flatten(0, 1)


def stack(models: Sequence[nn.Module], losses: Losses) -> nn.Module:
    """A model over the rows of all islands; the parameters of `models` become views [i] of its parameters.

    models: n copies of one architecture, on one device, of any weights. losses: as the island uses it; with it a small
    stacked copy is compared with looped ones first. Raises ConfigError for a model that does not stack; `models` are
    then unchanged.
    """
    _refuse_randomness(models[0])
    _probe(models[0], losses)
    return _stack(models)


def _stack(models: Sequence[nn.Module]) -> nn.Module:
    first, *others = models
    rest = [dict(m.named_parameters()) for m in others]
    stacked: dict[str, nn.Parameter] = {}
    for name, p in first.named_parameters():
        whole = torch.stack([p.detach(), *(r[name].detach() for r in rest)])
        stacked[name] = nn.Parameter(whole, requires_grad=p.requires_grad)
    memo: dict[int, object] = {id(p): stacked[name] for name, p in first.named_parameters()}
    model: nn.Module = copy.deepcopy(first, memo)  # with the stacked parameters in place of its own, ties included
    for name, module in list(model.named_modules()):
        if module._parameters:
            parent, _, attribute = name.rpartition(".")
            swapped = _swap(name, module)
            if name:
                setattr(model.get_submodule(parent), attribute, swapped)
            else:
                model = swapped
    for i, island in enumerate(models):
        for name, p in island.named_parameters():
            p.data = stacked[name].data[i]
    return model


def _swap(name: str, module: nn.Module) -> nn.Module:
    own = {n: p for n, p in module._parameters.items() if p is not None}
    weight, bias = own.get("weight"), own.get("bias")
    kind = type(module).__name__
    if weight is not None and own.keys() <= {"weight", "bias"} and not list(module.children()):
        if type(module) is nn.Linear:
            return StackedLinear(weight, bias, transposed=False)
        if kind == "Conv1D" and weight.ndim == 3:  # transformers' linear layer with the weight [in, out]
            return StackedLinear(weight, bias, transposed=True)
        if (
            type(module) is nn.Embedding
            and module.max_norm is None
            and not (module.sparse or module.scale_grad_by_freq)
        ):
            return StackedEmbedding(weight, module.padding_idx)
        is_norm = type(module) in (nn.LayerNorm, nn.RMSNorm) or (kind.endswith("RMSNorm") and bias is None)
        if is_norm and weight.ndim == 2:
            return StackedNorm(module, weight, bias)
    raise ConfigError(
        f"batched = True can't stack {name or 'the model'} ({kind} with {', '.join(own)}): "
        f"linear layers, embeddings and norms only. Fix: {FIX}"
    )


def _by_island(x: Tensor, islands: int) -> Tensor:
    if x.shape[0] % islands:
        raise ConfigError(
            f"batched = True can't run this model: a layer gets {x.shape[0]} rows, no multiple of {islands} islands. "
            f"Fix: {FIX}"
        )
    return x.unflatten(0, (islands, -1))


def _refuse_randomness(model: nn.Module) -> None:
    found = {n: float(m.p) for n, m in model.named_modules() if isinstance(m, nn.modules.dropout._DropoutNd)}
    config = getattr(model, "config", None)
    settings = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
    found |= {k: float(v) for k, v in settings.items() if ("drop" in k) and isinstance(v, (int, float))}
    for name, p in found.items():
        if p > 0:
            raise ConfigError(
                f"batched = True needs a model without dropout, {name} is {p:g}: islands draw from their own random "
                f"streams. Fix: set it to 0, or {FIX}"
            )


def _probe(model: nn.Module, losses: Losses) -> None:
    """Two islands with different weights, looped and stacked: what mixes rows or is not swapped right shows here."""
    generator = torch.Generator().manual_seed(0)
    pair = [copy.deepcopy(model), copy.deepcopy(model)]
    device = next(model.parameters()).device
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    ids = torch.randint(0, min(tables, default=2), (4, 9), generator=generator).to(device)
    with torch.no_grad():
        for p in pair[1].parameters():
            noise = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)
            p.add_(noise, alpha=0.1 * float(p.float().std(correction=0)) + 0.01)
        looped = torch.cat([losses(m, rows, rows) for m, rows in zip(pair, ids.chunk(2), strict=True)])
        together = losses(_stack(pair), ids, ids)
    if looped.shape != together.shape or not torch.allclose(looped, together, rtol=1e-3, atol=1e-3):
        raise ConfigError(
            f"batched = True gives other losses than a loop for {type(model).__name__}: it mixes rows of a batch. "
            f"Fix: {FIX}"
        )
