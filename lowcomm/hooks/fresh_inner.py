"""Fresh inner optimizers: every round begins without the moments of the one before, as FedAvg's clients have it.

A client then keeps nothing between its rounds but its place in its text. No bytes. Reduces to: nothing, for an inner
optimizer without state (SGD without momentum).
"""

from __future__ import annotations

from collections.abc import Sequence

from lowcomm.hooks.base import Hook
from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.state.replica import Replica


class FreshInner(Hook):
    """Forgets inner state once a round is committed."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = replicas

    def after_write(self, out: Outgoing, arrived: Arrived, change: object) -> None:
        for replica in self.replicas:
            replica.inner.state.clear()
