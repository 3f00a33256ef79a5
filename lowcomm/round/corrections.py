"""A local objective at work in a LocalSGD: its hook on inner steps, and the control variates of those that have any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowcomm.aggregate.lora.rule import LoraRule
from lowcomm.codec import Codec
from lowcomm.island.scalars import ScalarOptimizer
from lowcomm.local import Objective
from lowcomm.round.present_sum import sum_present
from lowcomm.types import ConfigError

if TYPE_CHECKING:
    from lowcomm.sync import LocalSGD


class Corrections:
    """Without an objective it does nothing. Lists: by local island, then by fragment; flat fp32 of its size."""

    def __init__(self, sync: LocalSGD) -> None:
        self.objective = sync.clients.objective
        self.common: list[Tensor] = []
        """c, by fragment; equal on every island."""
        self.own: list[list[Tensor]] = [[] for _ in sync.replicas]
        self.sums: list[list[Tensor]] = [[] for _ in sync.replicas]
        """Raw gradients of this round's steps."""
        self.steps = [0 for _ in sync.replicas]
        """Inner steps that are in `sums`."""
        if self.objective is None:
            return
        _check_fits(sync, self.objective)
        self.objective.check_names(sync.replicas[0].params)
        if self.objective.sends:
            self.common = [torch.zeros_like(f.weights) for f in sync.fragments]
            self.own = [[torch.zeros_like(c) for c in self.common] for _ in sync.replicas]
            self.sums = [[torch.zeros_like(c) for c in self.common] for _ in sync.replicas]
        for i, replica in enumerate(sync.replicas):
            replica.inner.register_step_pre_hook(lambda *_, k=i: self._before_step(sync, k))

    @torch.no_grad()
    def _before_step(self, sync: LocalSGD, i: int) -> None:
        assert self.objective is not None
        replica = sync.replicas[i]
        self.steps[i] += 1
        for index, fragment in enumerate(sync.fragments):
            starts = fragment.views(fragment.weights)
            sums = fragment.views(self.sums[i][index]) if self.common else {}
            controls = fragment.views(self.common[index] - self.own[i][index]) if self.common else {}
            grads = {n: g for n in starts if n in replica.params and (g := replica.params[n].grad) is not None}
            for name in grads if sums else ():
                sums[name].add_(grads[name])
            local = {n: replica.held[n] for n in starts if n in replica.held}  # averaged buffers are not
            had = list(grads)
            self.objective.correct(grads, local, starts, controls)
            for name in had:
                if name not in grads:
                    replica.params[name].grad = None

    @torch.no_grad()
    def exchange(self, sync: LocalSGD, index: int, weights: Sequence[float]) -> list[Tensor]:
        """Changes of c_k by local island, then of c, from the islands of weight above 0. Nothing is applied.

        Raises SyncError.
        """
        if not self.common:
            return []
        changes: list[Tensor] = []
        for i, own in enumerate(self.own):
            change = self.sums[i][index] / max(1, self.steps[i]) - own[index]
            counts = weights[sync.transport.local[i]] != 0 and self.steps[i] > 0 and bool(change.isfinite().all())
            changes.append(change if counts else torch.zeros_like(change))
        total = torch.empty_like(self.common[index])
        share = 1 / sync.transport.islands
        sum_present(sync.transport, changes, [share if w != 0 else 0.0 for w in weights], total)
        return [*changes, total]

    @torch.no_grad()
    def apply(self, index: int, changes: Sequence[Tensor]) -> None:
        """Take over what `exchange` gave, once the round is committed."""
        for i in range(len(self.steps)):
            self.steps[i] = 0
            if self.common:
                self.sums[i][index].zero_()
                self.own[i][index].add_(changes[i])
        if self.common:
            self.common[index].add_(changes[-1])

    def global_tensors(self, numels: Sequence[int]) -> dict[str, Tensor]:
        """c, for the checkpoint, without padding."""
        return {f"control.{j}": c[:n] for j, (c, n) in enumerate(zip(self.common, numels, strict=False))}

    def load_global(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `global_tensors` gave."""
        for j, c in enumerate(self.common):
            _fill(c, tensors[f"control.{j}"])

    def island_tensors(self, i: int, numels: Sequence[int]) -> dict[str, Tensor]:
        """c_k and the round's sum of gradients of a local island."""
        return {
            f"{kind}.{j}": t[:n]
            for kind, held in (("control_own", self.own[i]), ("control_sum", self.sums[i]))
            for j, (t, n) in enumerate(zip(held, numels, strict=False))
        }

    def load_island(self, i: int, tensors: dict[str, Tensor], steps: int) -> None:
        """Put back what `island_tensors` gave, and the steps in the sum."""
        self.steps[i] = steps
        for j in range(len(self.common)):
            _fill(self.own[i][j], tensors[f"control_own.{j}"])
            _fill(self.sums[i][j], tensors[f"control_sum.{j}"])

    def values(self, i: int) -> dict[str, Any]:
        """What goes beside the tensors: nothing without an objective."""
        return {} if self.objective is None else {"objective_steps": self.steps[i]}


def _fill(flat: Tensor, saved: Tensor) -> None:
    flat.zero_()
    flat[: saved.numel()].copy_(saved)


def _check_fits(sync: LocalSGD, objective: Objective) -> None:
    name = type(objective).__name__
    mesh, rule, codec = sync.replicas[0].part.mesh, sync.aggregator, sync.codec
    own_ranks = isinstance(rule, LoraRule) and (rule.ranks is not None or rule.shrinks)
    own_factors = type(codec).private is not Codec.private
    why = None
    if mesh is not None and mesh.size > 1:
        why = f"island.size = {mesh.size}", "its islands have one rank", "island.size 1"
    elif isinstance(sync.replicas[0].inner, ScalarOptimizer):
        why = "inner.optimizer = ZerothOrder", "it changes gradients", "an optimizer with a backward pass"
    elif objective.anchored and (own_ranks or own_factors):
        what = "sync.aggregator.ranks" if own_ranks else f"sync.codec = {type(codec).__name__}"
        why = what, "clients do not begin a round with the global factors", "equal ranks and codecs that send all"
    if why is not None:
        raise ConfigError(f"{why[0]} is not allowed with sync.objective = {name}: {why[1]}. Fix: use {why[2]}")
