"""All simulated islands in one forward and backward: for sweeps of small models, where starting a kernel costs more
than running it.

The islands stay what they are, with their own model, inner optimizer and random state: sync, checkpoints and evaluation
see no difference. The sums of a product of all islands are rounded in another order than those of one, so that losses
follow the loop closely, not bit for bit: within 1e-4 over 100 steps, and further away where a codec of few bits rounds
such a difference to another code. Reduces to: the loop over `PlainIsland.backward` and `PlainIsland.update`.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.adamw import adamw

from lowcomm.island.plain import Batch, PlainIsland, counted_tokens
from lowcomm.island.stacked import stack
from lowcomm.types import IGNORED


class BatchedIslands:
    """Trains `islands` together; the parameters of their models become views of stacked ones.

    compile: torch.compile the stacked model, once for all islands. Raises ConfigError for a model that does not stack.
    """

    def __init__(self, islands: Sequence[PlainIsland], *, compile: bool = False) -> None:
        _keep_memory()
        self.islands = list(islands)
        first = self.islands[0]
        self.model = stack([island.model for island in self.islands], first.losses)
        self.forward_model = cast("nn.Module", torch.compile(self.model)) if compile else self.model
        stacked = {p.data_ptr(): p for p in self.model.parameters()}
        self.params = [stacked[p.data_ptr()] for p in first.params]  # island 0 is where the stacked tensor begins

    def backward(self, batches: Mapping[int, Sequence[Batch]]) -> dict[int, float]:
        """Gradients of each island's mean loss over its micro-batches; returns these losses in nats per token.

        batches: by number of the island; one that is left out gets no gradient. Sizes may differ: shorter ones are
        padded with rows and tokens that no loss counts.
        """
        first, count = self.islands[0], len(self.islands)
        tokens = [float(counted_tokens(batches[i])) if i in batches else 1.0 for i in range(count)]
        divisors = torch.tensor(tokens, device=first.device)
        total = torch.zeros(count, device=first.device)
        for k in range(max(len(own) for own in batches.values())):
            inputs, targets = _stack_batches(
                [own[k] if k < len(own := batches.get(i, ())) else None for i in range(count)]
            )
            with torch.autocast("cuda", torch.bfloat16) if first.autocast_bf16 else nullcontext():
                losses = first.losses(self.forward_model, inputs.to(first.device), targets.to(first.device))
            means = losses.view(count, -1).sum(1) / divisors
            means.sum().backward()
            total += means.detach()
        for j, p in enumerate(self.params):
            if p.grad is not None:
                own = p.grad.unbind()
                for i in batches:
                    self.islands[i].params[j].grad = own[i]
        values = total.tolist()
        return {i: values[i] for i in batches}

    def update(self, step: int, numbers: Sequence[int]) -> None:
        """Clip, set the learning rate of inner step `step` and step, for these islands; then clear gradients."""
        self._clip(numbers)
        for i in numbers:
            for group in self.islands[i].inner.param_groups:
                group["lr"] = self.islands[i].lr(step)
        together = [i for i in numbers if _joins(self.islands[i].inner)]
        for p in self.params:
            p.grad = None
        for i in numbers:
            inner = self.islands[i].inner
            if i in together[:1]:  # the hooks that were there first, those of a sync, see the weights before the step
                hook = inner.register_step_pre_hook(lambda *_: self._step_stacked(together))
                try:
                    inner.step()
                finally:
                    hook.remove()
            else:
                inner.step()  # those together have no gradient any more: it only runs the hooks
            if i not in together:
                inner.zero_grad()

    @torch.no_grad()
    def _clip(self, numbers: Sequence[int]) -> None:
        limit = self.islands[0].config.clip_norm
        if limit is None:
            return
        grads = [p.grad for p in self.params if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in grads]).norm(dim=0)
        factors = (limit / (norms + 1e-6)).clamp(max=1.0)
        for g in grads:
            g.mul_(factors.view(-1, *[1] * (g.ndim - 1)))
        values = norms.tolist()
        for i in numbers:
            self.islands[i].grad_norm = values[i]

    @torch.no_grad()
    def _step_stacked(self, numbers: Sequence[int]) -> None:
        """AdamW of these islands in one call per parameter group: each tensor's step is the same as alone."""
        inners = [self.islands[i].inner for i in numbers]
        for group, *others in zip(*(inner.param_groups for inner in inners), strict=True):
            groups = [group, *others]
            pairs = [(inner, p) for inner, g in zip(inners, groups, strict=True) for p in g["params"]]
            params = [p for _, p in pairs if p.grad is not None]
            states = [inner.state[p] for inner, p in pairs if p.grad is not None]
            adamw(
                params,
                [p.grad for p in params],
                [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states],
                [],
                [s["step"] for s in states],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for p in params:
                p.grad = None


def _joins(inner: torch.optim.Optimizer) -> bool:
    """Whether its step may be taken with the others': AdamW that has stepped before, so that its state is there."""
    if type(inner) is not torch.optim.AdamW:
        return False
    plain = all(g["fused"] and not (g["amsgrad"] or g["maximize"]) for g in inner.param_groups)
    return plain and all(p in inner.state for g in inner.param_groups for p in g["params"])


def _stack_batches(batches: Sequence[Batch | None]) -> tuple[Tensor, Tensor]:
    """Inputs and targets [islands * rows, seq_len], padded to the largest; None is all padding."""
    shapes = [inputs.shape for inputs, _ in filter(None, batches)]
    rows, length = max(s[0] for s in shapes), max(s[1] for s in shapes)
    if len(shapes) == len(batches) and all(s == (rows, length) for s in shapes):
        inputs, targets = zip(*filter(None, batches), strict=True)
        return torch.cat(inputs), torch.cat(targets)
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for batch in batches:
        for side, value in ((0, 0), (1, IGNORED)):
            t = torch.full((rows, length), value) if batch is None else batch[side]
            found[side].append(F.pad(t, (0, length - t.shape[1], 0, rows - t.shape[0]), value=value))
    return torch.cat(found[0]), torch.cat(found[1])


def _keep_memory() -> None:
    """Let glibc keep freed memory: activations of all islands are large enough to be returned to the system after every
    operation otherwise, and to get its pages one by one again costs a fifth of a step."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD, bytes
        mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, bytes: the largest that glibc takes
