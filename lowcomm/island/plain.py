"""The plain island: one process, one replica; forward, backward and the inner optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from lowcomm.island.inner import InnerConfig, lr_factor

Batch = tuple[Tensor, Tensor]
LossFn = Callable[[nn.Module, Tensor, Tensor], Tensor]


class PlainIsland:
    """Trains `model` on batches; keeps its own random state, so that simulated islands do not share a stream."""

    def __init__(
        self,
        model: nn.Module,
        config: InnerConfig,
        *,
        steps: int,
        seed: int,
        losses: LossFn,
        forward: nn.Module | None = None,
        autocast_bf16: bool = False,
    ) -> None:
        self.model, self.config, self.steps, self.losses = model, config, steps, losses
        self.forward_model = model if forward is None else forward
        self.inner = config.optimizer.build(model)
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.device = self.params[0].device
        self.autocast_bf16 = autocast_bf16 and self.device.type == "cuda"
        generator = torch.Generator().manual_seed(seed)
        self.cpu_rng: Tensor = generator.get_state()
        self.cuda_rng: Tensor | None = None
        self.grad_norm = float("nan")
        """Gradient norm of the last step before clipping; NaN (not measured) without clipping."""

    def backward(self, batches: Sequence[Batch]) -> float:
        """Accumulate the gradient of the mean loss over micro-batches; returns that loss in nats per token."""
        self._swap_in_rng()
        tokens = sum(targets.numel() for _, targets in batches)
        total = 0.0
        for inputs, targets in batches:
            context = torch.autocast("cuda", torch.bfloat16) if self.autocast_bf16 else nullcontext()
            with context:
                losses = self.losses(self.forward_model, inputs.to(self.device), targets.to(self.device))
            loss = losses.sum() / tokens
            loss.backward()
            total += float(loss.detach())
        self._swap_out_rng()
        return total

    def update(self, step: int) -> None:
        """Clip, set the learning rate of global inner step `step` (from 0), take the inner step, clear gradients."""
        if self.config.clip_norm is not None:
            self.grad_norm = float(nn.utils.clip_grad_norm_(self.params, self.config.clip_norm))
        for group in self.inner.param_groups:
            group["lr"] = self.lr(step)
        self.inner.step()
        self.inner.zero_grad()

    def lr(self, step: int) -> float:
        """Learning rate of global inner step `step`."""
        c = self.config
        return c.optimizer.lr * lr_factor(step, self.steps, c.warmup_fraction, c.min_lr_fraction)

    def _swap_in_rng(self) -> None:
        torch.set_rng_state(self.cpu_rng)
        if self.cuda_rng is not None:
            torch.cuda.set_rng_state(self.cuda_rng, self.device)

    def _swap_out_rng(self) -> None:
        self.cpu_rng = torch.get_rng_state()
        if self.device.type == "cuda":
            self.cuda_rng = torch.cuda.get_rng_state(self.device)
