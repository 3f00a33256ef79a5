"""The shelf: what clients keep between their rounds, on disk in place of memory.

A client's moments, codec state and tensors of its own lie in one safetensors file, of which the process holds a private
memory map: whoever reads them reads the file, and what its next turn writes stays in memory until it is put on the
shelf again. The file loses its name as soon as it is mapped: nobody else can open it, and it goes with the process.
Costs: one write and one read of a client's state per round in which it takes part.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowcomm.hooks.base import Place
from lowcomm.private_files import protect
from lowcomm.state.client import Client
from lowcomm.state.report import SyncReport
from lowcomm.state.state import SyncState
from lowcomm.types import CheckpointError


class Shelf:
    """Puts away what clients of a state have, once a round is committed in which they took a turn."""

    def __init__(self, state: SyncState, directory: Path) -> None:
        """directory: where files are made, a private one inside it each time."""
        self.state, self.directory = state, directory
        self._tokens = [r.tokens for r in state.replicas]
        """Of each client, when it was last put away."""
        self._put: list[dict[int, Tensor]] = [{} for _ in state.replicas]
        """By client: what lies in its file, by identity."""
        self.kept_bytes = [0] * len(state.replicas)
        """On disk, by client."""

    def on_sync(self, report: SyncReport) -> None:
        """Put away what those have who trained since they were put away. Raises CheckpointError (disk full)."""
        for i, replica in enumerate(self.state.replicas):
            if replica.tokens != self._tokens[i] or not (replica.idle or self._lies_here(i)):
                self._tokens[i] = replica.tokens
                self.put(i)

    def _lies_here(self, local: int) -> bool:
        """Whether what a client that sat out has of its own was put away before."""
        replica = self.state.replicas[local]
        return all(id(t) in self._put[local] for name, t in replica.held.items() if not replica.follows(name))

    def put(self, local: int) -> None:
        """Write one client's tensors, map the file, and let them be read from there."""
        self._put[local] = {}
        places = {str(k): place for k, place in enumerate(self._places(local)) if place[0].numel()}
        self.kept_bytes[local] = sum(t.numel() * t.element_size() for t, _ in places.values())
        if not places:
            return
        try:
            with tempfile.TemporaryDirectory(prefix=".client-", dir=self.directory) as directory:  # mode 0700
                path = Path(directory) / f"client-{local:05d}.safetensors"
                save_file({name: t.detach().cpu().contiguous() for name, (t, _) in places.items()}, path)
                protect(path)
                found = load_file(path)
        except (OSError, SafetensorError) as error:
            raise self._failed(error) from error
        for name, (_, put) in places.items():
            put(found[name])
        self._put[local] = {id(t): t for t in found.values()}
        if isinstance(replica := self.state.replicas[local], Client):
            replica.stand_up()

    def _places(self, local: int) -> Iterator[Place]:
        """All tensors on the CPU that a client keeps: inner state, codec states, hooks' and its own weights."""
        state, replica = self.state, self.state.replicas[local]
        for kept in replica.inner.state.values():
            for key, t in kept.items():
                if isinstance(t, Tensor) and t.device.type == "cpu":
                    yield t, partial(kept.__setitem__, key)
        for index, kept in enumerate(state.codec_states[local]):
            if kept is not state.shared_codec_states.get(index):
                for key, t in kept.items():
                    if t.device.type == "cpu":
                        yield t, partial(kept.__setitem__, key)
        for hook in state.hooks:
            yield from hook.kept(local)
        if isinstance(replica, Client) and not replica.idle:
            for name, t in replica.held.items():
                if not replica.follows(name) and t.device.type == "cpu":
                    yield t.detach(), partial(replica.held.__setitem__, name)

    def _failed(self, error: Exception) -> CheckpointError:
        cause = getattr(error, "strerror", None) or str(error)
        return CheckpointError(
            f"what a client keeps could not be written to {self.directory}: {cause}. "
            "Fix: free some space, or leave client_state = 'disk' out, and continue with --resume auto"
        )
