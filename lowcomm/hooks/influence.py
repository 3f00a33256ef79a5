"""Influence: whose Delta helps whose held-out loss, measured every few rounds.

Zhu et al., DICE: data influence cascade in decentralized learning, ICLR 2025, arXiv 2507.06931.

    I[k, j] = W_jk <grad L_j(w_j), D_k>,    W = 1 / K: every island hears every other (one hop)

L_j: loss of island j on text of its own that it does not train on; w_j: its weights when the round ends; D_k: what
island k sends, after privacy and attacks. Positive: k's step lowers j's loss. [K, K], the same on every island.
Cost: in such a round one gradient of the held-out text, one gather of it in fp32 and one of K numbers per island.
Deviates: one hop only: with all islands in one exchange there is no second. Reduces to: K = 1, an island's own
progress along its gradient.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lowcomm.hooks.base import Hook
from lowcomm.state.outgoing import Outgoing
from lowcomm.state.replica import Replica
from lowcomm.transport import Transport

NAME = "influence.json"
Loss = Callable[[], Tensor]
"""The held-out loss of a local island's model, a scalar with its graph."""


class Influence(Hook):
    """The last of the hooks: it sees what leaves."""

    def __init__(self, every: int, losses: Sequence[Loss], replicas: Sequence[Replica], transport: Transport) -> None:
        self.every, self.losses, self.replicas, self.transport = every, losses, replicas, transport
        self.newest: tuple[int, Tensor] | None = None
        """Round and table, until they are written."""

    def release(self, out: Outgoing) -> None:
        if (out.round.index + 1) % self.every:
            return
        size = out.fragment.numel
        gradients = self.transport.gather([self._gradient(out, i) for i in range(len(self.replicas))])
        own = [gradients.double() @ flat[:size].double().to(gradients.device) for flat in out.deltas]
        table = self.transport.gather([row / self.transport.islands for row in own])
        self.newest = (out.round.index, table)

    def _gradient(self, out: Outgoing, local: int) -> Tensor:
        """Flat, fp32, in the order of the fragment."""
        replica = self.replicas[local]
        training = replica.model.training
        replica.model.eval()
        with torch.enable_grad():
            params = [replica.params[n] for n in out.fragment.names if n in replica.params]
            found = iter(torch.autograd.grad(self.losses[local](), params, allow_unused=True))
        replica.model.train(training)
        flat = torch.zeros(out.fragment.numel, device=out.deltas[local].device)
        for name, view in out.fragment.views(flat).items():
            grad = next(found) if name in replica.params else None
            if grad is not None:
                view.copy_(grad)
        return flat

    def write(self, directory: Path) -> None:
        """Add the newest table to influence.json, once. Raises OSError."""
        if self.newest is None:
            return
        (number, table), self.newest = self.newest, None
        path = directory / NAME
        before = json.loads(path.read_text(encoding="utf-8"))["rounds"] if path.exists() else []
        kept = [row for row in before if row["round"] < number]
        values = {"rounds": [*kept, {"round": number, "influence": table.tolist()}]}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(values) + "\n", encoding="utf-8")
        partial.chmod(0o600)
        partial.replace(path)
