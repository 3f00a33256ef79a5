"""What can't protect buffers that islands average: part of the table in `compatibility.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lowcomm.exchange.buffered import Buffered
from lowcomm.state.conflict import Conflict
from lowcomm.state.spec import SyncSpec


def with_buffers(spec: SyncSpec, averaged: Sequence[str]) -> Iterator[Conflict]:
    """averaged: names of the buffers."""
    for name, on, what in (("privacy", spec.noises_deltas, "noise"), ("secure", spec.clients.secure, "masks")):
        if on and averaged:
            why = f"{', '.join(averaged)} would be averaged between islands without {what}"
            yield Conflict("buffers", None, f"sync.{name}", why, "keep them local, buffers={'*': 'local'}")
    if isinstance(spec.exchange, Buffered) and averaged:
        why = f"{', '.join(averaged)} would be averaged in a second exchange of all islands"
        yield Conflict("buffers", None, "sync.exchange = Buffered", why, "keep them local, buffers={'*': 'local'}")
