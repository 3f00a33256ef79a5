"""The plain island: one process, one replica; forward, backward and the inner optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from lowcomm.island.inner import InnerConfig
from lowcomm.island.lr import lr_factor
from lowcomm.island.part import Part, Whole
from lowcomm.types import IGNORED, LowcommError, counted

Batch = tuple[Tensor, Tensor]
LossFn = Callable[[nn.Module, Tensor, Tensor], Tensor]


def counted_tokens(batches: Sequence[Batch]) -> int:
    """Targets of a step that its loss counts. Raises LowcommError if all of them are masked."""
    tokens = sum(counted(targets) for _, targets in batches)
    if tokens == 0:
        raise LowcommError(
            f"all targets of a step are masked ({IGNORED}): there is nothing to learn from. "
            "Fix: leave out sequences without an answer"
        )
    return tokens


class PlainIsland:
    """Trains `model` on batches; keeps its own random state, so that simulated islands do not share a stream."""

    ranks = 1
    """Over how many ranks, each with rows of its own, an island's gradient is a mean."""

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
        self.part: Part = Whole()
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.device = self.params[0].device
        self.autocast_bf16 = autocast_bf16 and self.device.type == "cuda"
        generator = torch.Generator().manual_seed(seed)
        self.cpu_rng: Tensor = generator.get_state()
        self.cuda_rng: Tensor | None = None
        self.take_turn: Callable[[], None] | None = None
        """Lets the model hold this island's weights before a step, where islands take turns on one model."""
        self.grad_norm = float("nan")
        """Gradient norm of the last step before clipping; NaN (not measured) without clipping."""

    def backward(self, batches: Sequence[Batch]) -> float:
        """Accumulate the gradient of the mean loss over micro-batches; returns that loss in nats per counted token.

        Every rank divides by its share of the island's counted tokens, however many are in its own rows.
        """
        self._swap_in()
        mine = [self.own_rows(batch) for batch in batches]
        tokens = counted_tokens(batches) / self.ranks
        total = 0.0
        for number, (inputs, targets) in enumerate(mine, start=1):
            context = torch.autocast("cuda", torch.bfloat16) if self.autocast_bf16 else nullcontext()
            with self.sharing_gradients(number == len(mine)):
                with context:
                    losses = self.losses(self.forward_model, inputs.to(self.device), targets.to(self.device))
                loss = losses.sum() / tokens
                loss.backward()
            total += float(loss.detach())
        self._swap_out_rng()
        return total

    def reported_tokens(self, batches: Sequence[Batch]) -> int:
        """Tokens that the island says it trained on in a step, by which it weighs: targets that the loss counts."""
        return sum(counted(targets) for _, targets in batches)

    def own_rows(self, batch: Batch) -> Batch:
        """The part of an island's batch that this rank trains on."""
        return batch

    def sharing_gradients(self, last: bool) -> AbstractContextManager[None]:
        """Around a micro-batch; in the last one of a step an island's ranks bring their gradients together."""
        return nullcontext()

    def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Losses in nats by token, without a gradient: int64 [batch, seq_len] -> fp32 [batch * seq_len].

        All ranks of an island call it alike.
        """
        return self.losses(self.model, inputs.to(self.device), targets.to(self.device))

    def parameter_counts(self) -> tuple[int, int]:
        """Elements of the island's model: (all, trainable)."""
        parameters = list(self.model.parameters())
        loosened = [b for name, b in self.model.named_buffers() if name.endswith(".base_layer.weight")]
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        return sum(p.numel() for p in (*parameters, *loosened)), trainable

    def whole_state(self) -> dict[str, Tensor] | None:
        """The island's weights by name, on its first rank, for an export; None: as they are in `model`, or elsewhere.

        All ranks of an island call it alike.
        """
        return None

    def update(self, step: int) -> None:
        """Clip, set the learning rate of global inner step `step` (from 0), take the inner step, clear gradients."""
        if self.config.clip_norm is not None:
            self.grad_norm = self.clip(self.config.clip_norm)
        for group in self.inner.param_groups:
            group["lr"] = self.lr(step)
        self.inner.step()
        self.inner.zero_grad()

    def clip(self, clip_norm: float) -> float:
        """Scale the gradients down to this norm; returns what it was before."""
        return float(nn.utils.clip_grad_norm_(self.params, clip_norm))

    def lr(self, step: int) -> float:
        """Learning rate of global inner step `step`."""
        c = self.config
        shape = (c.warmup_fraction, c.min_lr_fraction, c.lr_schedule, c.decay_fraction)
        return c.optimizer.lr * lr_factor(step, self.steps, *shape)

    def _swap_in(self) -> None:
        """Let the process's random state, and the model's weights, be this island's."""
        if self.take_turn is not None:
            self.take_turn()
        torch.set_rng_state(self.cpu_rng)
        if self.cuda_rng is not None:
            torch.cuda.set_rng_state(self.cuda_rng, self.device)

    def _swap_out_rng(self) -> None:
        self.cpu_rng = torch.get_rng_state()
        if self.device.type == "cuda":
            self.cuda_rng = torch.cuda.get_rng_state(self.device)
