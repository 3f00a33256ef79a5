"""Ranks that want to stop at different steps, under a trainer whose other collectives need all of them.

A rank that wants to stop names the first round whose exchange has not begun, in the process group's key-value store;
after each round every rank looks whether it was named. Whoever asked did so before it took part in that round, so all
that have come through it see the same. Costs one look-up in the store per round and rank.
"""

from __future__ import annotations

import itertools
import logging

import torch.distributed as dist

from lowcomm.state.state import SyncState

_numbers = itertools.count()
"""Trainings of this process, which all ranks begin in the same order."""


class StopTogether:
    """One training's wish to stop."""

    def __init__(self, state: SyncState) -> None:
        self._state, self._name, self._asked = state, f"lowcomm-stop-{next(_numbers)}", False
        self._store = dist.distributed_c10d._get_default_store() if state.transport.islands > 1 else None
        self._looked_at = state.round

    def ask(self) -> bool:
        """Want to stop. Returns whether this rank is the only island, which may do so at once."""
        if self._store is None:
            return True
        if not self._asked:
            named = self._state.round + len(self._state.in_flight) + 1
            self._store.set(f"{self._name}/{named}", "1")
            logging.getLogger("lowcomm").info("a stop was asked for: all ranks stop after round %d", named)
        self._asked = True
        return False

    def is_due(self) -> bool:
        """Whether a round that has been committed since the last call was named by any rank."""
        rounds, self._looked_at = range(self._looked_at + 1, self._state.round + 1), self._state.round
        return self._store is not None and any(self._store.check([f"{self._name}/{r}"]) for r in rounds)
