"""Training without a backward pass: islands probe their loss along seeded directions and exchange scalars.

Joins an estimate (`lowcomm.local`) to an inner optimizer and an island. The optimizer keeps a journal of the rows heard
and of the learning rates: `catch_up` replays what a peer has missed, and ends with the bits of those who were there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lowcomm.island import Batch, Inner, InnerConfig, PlainIsland
from lowcomm.island.plain import LossFn, counted_tokens
from lowcomm.island.scalars import ScalarOptimizer
from lowcomm.local import Estimate, OneByte, Probe, move
from lowcomm.schedule import EveryStep, Schedule
from lowcomm.types import ConfigError, SyncError, require


@dataclass(frozen=True, kw_only=True)
class ZerothOrder(Inner):
    """Plain descent along an estimate; its peak rate is of the size of SGD's divided by the trained parameters."""

    lr: float = 1e-4
    """Peak inner learning rate (no unit)."""
    estimate: Estimate = field(default_factory=OneByte)

    def build(self, model: nn.Module) -> ZerothOrderOptimizer:
        return ZerothOrderOptimizer(model, self)

    def check(self) -> None:
        ok = math.isfinite(self.lr) and self.lr > 0
        require(ok, "inner.optimizer.lr", self.lr, "a finite number above 0", "1e-4 suits small models")
        self.estimate.check()


class ZerothOrderOptimizer(ScalarOptimizer):
    """Steps along the terms that the rows of all islands stand for. State: the journal, on the first parameter."""

    def __init__(self, model: nn.Module, settings: ZerothOrder) -> None:
        self.estimate, self.seed = settings.estimate, 0
        super().__init__([p for p in model.parameters() if p.requires_grad], {"lr": settings.lr})
        self.heard: Tensor | None = None

    @property
    def row_bytes(self) -> int:
        return self.estimate.row_bytes

    @property
    def steps(self) -> int:
        """Steps taken, those of a run before a resume and those replayed included."""
        return self._state()["rates"].numel()

    @property
    def journal(self) -> tuple[Tensor, Tensor]:
        """Rows heard, uint8 [steps, islands * row_bytes], and learning rates, fp64 [steps]: on the CPU, copies."""
        state = self._state()
        return state["rows"].cpu().clone(), state["rates"].cpu().clone()

    def hear(self, rows: Tensor) -> None:
        self.heard = rows

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update from the rows heard. Raises SyncError if the islands have not exchanged any for it."""
        if self.heard is None:
            raise SyncError("no scalars were exchanged for this step. Fix: use the schedule EveryStep")
        rows, self.heard, self.row = self.heard, None, None
        self._apply(rows, self.param_groups[0]["lr"])

    def catch_up(self, rows: Tensor, rates: Tensor) -> int:
        """Replay what is missing here of another peer's journal; returns the number of steps.

        The weights must be those that all began with, or with which this peer left. A peer may have joined or left in
        between: its slot has the absent row while it is away. Raises ConfigError for a journal that is not of this run.
        """
        own, _ = self.journal
        known = self.steps
        same = known <= len(rows) == len(rates) and (known == 0 or torch.equal(own, rows[:known]))
        require(same, "journal", f"{len(rows)} steps", f"{known} or more that begin as this peer's own", "ask another")
        for row, lr in zip(rows[known:], rates[known:].tolist(), strict=True):
            self._apply(row.view(-1, self.estimate.row_bytes), lr)
        return len(rows) - known

    def _apply(self, rows: Tensor, lr: float) -> None:
        state = self._state()
        terms = self.estimate.terms(rows.cpu(), self.seed, self.steps)
        for number, p in enumerate(self.param_groups[0]["params"]):
            move(p, number, [(seed, -lr * c) for seed, c in terms])
        row = rows.reshape(1, -1).to(state["rates"].device)
        state["rows"] = torch.cat([state["rows"].view(-1, row.shape[1]), row])
        state["rates"] = torch.cat([state["rates"], torch.tensor([lr], dtype=torch.float64, device=row.device)])

    def _state(self) -> dict[str, Tensor]:
        first: Tensor = self.param_groups[0]["params"][0]
        state = self.state[first]
        if not state:
            state["rows"] = torch.empty(0, 1, dtype=torch.uint8, device=first.device)
            state["rates"] = torch.empty(0, dtype=torch.float64, device=first.device)
        return state


class ZerothOrderIsland(PlainIsland):
    """Makes its step's row out of forward passes only."""

    inner: ZerothOrderOptimizer

    def __init__(
        self,
        model: nn.Module,
        config: InnerConfig,
        *,
        steps: int,
        seed: int,
        losses: LossFn,
        shared_seed: int,
        number: int,
        autocast_bf16: bool = False,
    ) -> None:
        """seed: of this island's own randomness (dropout); shared_seed: of all directions; number: of this island."""
        super().__init__(model, config, steps=steps, seed=seed, losses=losses, autocast_bf16=autocast_bf16)
        self.inner.seed, self.number, self.probe = shared_seed, number, Probe(model)

    @torch.no_grad()
    def backward(self, batches: Sequence[Batch]) -> float:
        """No backward pass: the row of the coming step, for the mean loss over micro-batches, which is returned."""
        inner = self.inner
        seeds = inner.estimate.seeds(inner.seed, inner.steps, self.number)
        scalars, value = inner.estimate.measure(lambda seed, scale: self._loss(batches, seed, scale), seeds)
        self._swap_out_rng()
        inner.row = inner.estimate.write(scalars)
        self.grad_norm = math.sqrt(sum(s * s for s in scalars) / len(scalars))
        return value

    def _loss(self, batches: Sequence[Batch], seed: int, scale: float) -> float:
        self._swap_in()  # each probe of a step with the same dropout
        tokens, total = counted_tokens(batches), 0.0
        with self.probe.at(seed, scale), torch.autocast("cuda", torch.bfloat16, enabled=self.autocast_bf16):
            for inputs, targets in batches:
                total += float(self.token_losses(inputs, targets).double().sum())
        return total / tokens

    def update(self, step: int) -> None:
        """Set the learning rate of global inner step `step`, take the step that all rows make."""
        for group in self.inner.param_groups:
            group["lr"] = self.lr(step)
        self.inner.step()


def check_zeroth_order(inner: InnerConfig, schedule: Schedule, batched: bool, size: int, compiled: bool) -> None:
    """Raise ConfigError for what does not go with training without a backward pass. size: ranks of an island."""
    if not isinstance(inner.optimizer, ZerothOrder):
        return
    other = not isinstance(schedule, EveryStep)
    wrong = [
        (other, "sync.schedule", type(schedule).__name__, "scalars make a step", "EveryStep"),
        (inner.clip_norm is not None, "inner.clip_norm", inner.clip_norm, "there is no gradient to clip", "None"),
        (batched, "batched", True, "each island has its own weights while it probes", "False"),
        (size > 1, "island.size", size, "an island's ranks hold gradients or parts of weights", "1"),
        (compiled, "model.compile", True, "weights are swapped in hooks", "False"),
    ]  # fmt: skip
    for bad, name, value, why, fix in wrong:
        if bad:
            raise ConfigError(f"{name} = {value} is not allowed with the optimizer ZerothOrder: {why}. Fix: use {fix}")
