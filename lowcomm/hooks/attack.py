"""The attack hook: local islands that attack send something else than what they trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lowcomm.attack import Attack, Seen
from lowcomm.hooks.base import Hook
from lowcomm.state.norms import l2_norm
from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.transport import Transport
from lowcomm.types import Part

KEPT = "attack.first."


class Corruption(Hook):
    """Replaces Deltas in place, before any other hook sees them."""

    def __init__(self, attack: Attack, transport: Transport) -> None:
        self.attack, self.transport = attack, transport
        self.first: list[dict[int, Tensor]] = [{} for _ in transport.local]
        """By local island and fragment: the first Delta, flat, where the attack keeps it."""
        self.overheard_bytes = 0
        """Bytes that each local island has sent so that attackers hear them; they are in the transport's counts."""

    def release(self, out: Outgoing) -> None:
        honest, ours = self._listen(out) if self.attack.listens else (None, None)
        for local, (island, flat) in enumerate(zip(self.transport.local, out.deltas, strict=True)):
            if island not in self.attack.islands:
                continue
            own, kept = flat[: out.fragment.numel], self.first[local]
            now = dataclasses.replace(out.round, island=island)
            seen = Seen(round=now, honest=honest, colluders=ours, first=kept.get(out.index))
            if self.attack.keeps:
                kept.setdefault(out.index, own.clone())
            own.copy_(self.attack.corrupt(own, seen))
            if not self.attack.hides:
                out.norms[local] = float(l2_norm(flat))

    def _listen(self, out: Outgoing) -> tuple[Tensor, Tensor]:
        """Deltas whose values are finite, of the islands that do not attack and of those that do: [n, size] each."""
        before = self.transport.sent_bytes[0]
        rows = self.transport.gather([flat[: out.fragment.numel] for flat in out.deltas])
        self.overheard_bytes += self.transport.sent_bytes[0] - before
        finite = [bool(row.isfinite().all()) for row in rows]
        attacks = [k in self.attack.islands for k in range(len(rows))]
        honest, ours = ([k for k, ok in enumerate(finite) if ok and attacks[k] == which] for which in (False, True))
        return rows[torch.tensor(honest, dtype=torch.long)], rows[torch.tensor(ours, dtype=torch.long)]

    def note(self, arrived: Arrived) -> str:
        return f"attack: {self.attack.said}"

    def summary(self) -> dict[str, object]:
        """For summary.json."""
        return {
            "name": type(self.attack).__name__,
            "islands": list(self.attack.islands),
            "overheard_bytes": self.overheard_bytes,
        }

    def island_part(self, local: int) -> Part:
        tensors = {f"{KEPT}{index}": t for index, t in self.first[local].items()}
        return tensors, {"overheard_bytes": self.overheard_bytes}

    def load_island(self, local: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.first[local] = {int(k.removeprefix(KEPT)): t for k, t in tensors.items() if k.startswith(KEPT)}
        self.overheard_bytes = values.get("overheard_bytes", 0)
