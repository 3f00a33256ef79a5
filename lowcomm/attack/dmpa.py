"""DMPA: colluders find what their honest updates have in common, and turn just that round.

DMPA, model poisoning of decentralised federated learning by the angle between colluders.

    U = [D_1 .. D_m] of the colluders;  R: correlations of the columns of U, (l, v) its largest eigenpair
    phi = arccos(l / m),    u = U v / ||U v||,    D_i' = D_i - (1 + min(tan phi, 2)) <D_i, u> u
    each sends mean_i D_i' * median honest norm / ||mean_i D_i'||

What differs between colluders stays, so that what is sent looks like an update. Flat and fp32.
Bytes: colluders hear all Deltas of the round before they send, by one more fp32 gather, which is counted apart.
Raises: ConfigError for fewer than two attackers.
Deviates: the paper names eigenvalue, angle, projection and mean; the factor of the third line is our own.
Reduces to: colluders with one Delta have phi = 0 and send what is left of it without its own direction: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.attack.base import Attack, Seen, norm_of
from lowcomm.types import require

MOST_TANGENT = 2.0


@dataclass(frozen=True, kw_only=True)
class DMPA(Attack):
    """The common direction of the colluders, turned round."""

    islands: tuple[int, ...] = (0, 1)
    """Numbers of the islands that collude, two or more."""

    listens: ClassVar[bool] = True

    def check_islands(self, islands: int) -> None:
        super().check_islands(islands)
        ok = len(self.islands) >= 2
        require(ok, "sync.attack.islands", self.islands, "two numbers or more, who collude", "name another one")

    def corrupt(self, delta: Tensor, seen: Seen) -> Tensor:
        ours = seen.colluders
        if ours is None or len(ours) < 2:
            return delta
        rows = ours.double()
        norms = rows.norm(dim=1)
        if not bool((norms > 0).all()):
            return delta
        values, vectors = torch.linalg.eigh(torch.corrcoef(rows))
        shared = vectors[:, -1] @ rows
        size = shared.norm()
        if not float(size) > 0:
            return delta
        unit = shared / size
        angle = torch.arccos((values[-1] / len(rows)).clamp(-1, 1))
        turned = rows - (1 + angle.tan().clamp(0, MOST_TANGENT)) * (rows @ unit)[:, None] * unit
        sent = turned.mean(dim=0)
        honest = ours if seen.honest is None or not len(seen.honest) else seen.honest
        usual = torch.tensor([norm_of(row) for row in honest]).sort().values[(len(honest) - 1) // 2]
        length = float(sent.norm())
        return (sent * (float(usual) / length) if length > 0 else sent).to(delta.dtype)
