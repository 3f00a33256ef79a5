"""Losses at work: islands say theirs in the roll call, and scale the tokens that they weigh by (`LossWeighted`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lowcomm.aggregate.loss_weighted import Learnt, LossWeighted, Said
from lowcomm.hooks.base import Hook
from lowcomm.state.cohort import Section
from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.state.replica import Replica
from lowcomm.transport import Transport
from lowcomm.types import Part, SyncError

SECTION = "losses"
MOST_NATS = 1000.0
"""A loss per token above this is none that training gives."""


class LossWeights(Hook):
    """Scales the weights of local islands by their losses since the last commit."""

    def __init__(self, rule: LossWeighted, replicas: Sequence[Replica], transport: Transport) -> None:
        self.rule, self.replicas, self.transport = rule, replicas, transport
        self.learnt: Learnt = {}

    @property
    def numbers(self) -> int:
        return 2

    def release(self, out: Outgoing) -> None:
        own: list[list[float]] = []
        for i, (island, replica) in enumerate(zip(self.transport.local, self.replicas, strict=True)):
            tokens, loss = out.unsynced[i], replica.loss
            if loss is None and tokens > 0:
                raise SyncError(
                    f"{type(self.rule).__name__} weighs islands by their losses, and island {island} has said none. "
                    "Fix: call count_loss(loss) in each inner step"
                )
            own.append([loss or 0.0, tokens])
            if tokens > 0 and loss is not None:
                out.unsynced[i] = tokens * self.rule.factor(island, loss, self.learnt)
        out.sections[SECTION] = Section(own=own, refuse=_refuse)

    def after_write(self, out: Outgoing, arrived: Arrived, change: object) -> None:
        cohort = arrived.cohort
        rows = enumerate(cohort.sections[SECTION])
        said = {k: Said(loss=row[0], tokens=row[1]) for k, row in rows if cohort.weights[k] != 0}
        self.learnt = self.rule.learn(said, self.learnt, self.transport.islands)
        for replica in self.replicas:
            replica.losses = (0.0, 0)

    def note(self, arrived: Arrived) -> str:
        """What each island weighed, and its loss."""
        cohort = arrived.cohort
        rows = zip(cohort.weights, cohort.sections[SECTION], strict=True)
        shown = ", ".join(f"{k}: {w:.4g} (loss {row[0]:.4g})" for k, (w, row) in enumerate(rows) if w)
        return f"{type(self.rule).__name__}: weights {shown}"

    def global_part(self) -> Part:
        return {}, {"loss_weights": self.learnt}

    def load_global(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.learnt = {name: list(numbers) for name, numbers in values.get("loss_weights", {}).items()}

    def island_part(self, local: int) -> Part:
        return {}, {"losses": list(self.replicas[local].losses)}

    def load_island(self, local: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        total, count = values.get("losses", (0.0, 0))
        self.replicas[local].losses = (float(total), int(count))


def _refuse(island: int, numbers: Sequence[float]) -> str | None:
    loss, tokens = numbers
    ok = math.isfinite(loss) and 0 <= loss <= MOST_NATS and math.isfinite(tokens) and tokens >= 0
    return None if ok else f"it says a loss of {loss:g} over {tokens:g} tokens"
