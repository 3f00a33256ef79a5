"""Notices weights that neither the inner optimizer nor a sync has written, as by a checkpoint restored past the sync.

By torch's version counters, which every write in place moves; a write through `.data` is not seen. Costs no exchange
and no copy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

FIX = (
    "If a checkpoint was restored: sync.save(path) and sync.load(path) keep the outer optimizer, the round and every "
    "island's own work, too"
)


class WriteWatch:
    """The versions of one model's parameters; `resumed`: its inner optimizer came with moments."""

    def __init__(self, params: Mapping[str, Tensor], resumed: bool) -> None:
        self._params, self._resumed = params, resumed
        self._versions: list[int] = []
        self._told = False
        self.mark()

    def mark(self) -> None:
        """What is there now was written by training or by a sync."""
        self._versions = [p._version for p in self._params.values()]

    def written(self) -> str | None:
        """The first parameter that was written since `mark`; None: there is none."""
        now = [p._version for p in self._params.values()]
        return next((n for n, a, b in zip(self._params, self._versions, now, strict=True) if a != b), None)

    def check(self, steps: int) -> None:
        """Before an inner step, `steps` being done: warn of what was written since `mark`."""
        changed = self.written()
        if self._told or (changed is None and not (self._resumed and steps == 0)):
            return
        self._told = True
        if changed is None:
            what = "the inner optimizer has moments of earlier steps, but the outer optimizer and the round start anew"
        else:
            what = (
                f"{changed} was written between inner steps {steps} and {steps + 1}, not by the optimizer: the next "
                "sync sends the change as if it had been trained"
            )
        logging.getLogger("lowcomm").warning(f"{what}. {FIX}")
