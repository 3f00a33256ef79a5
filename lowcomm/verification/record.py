"""The record of a run's steps: hashes every local island's state and appends them to its transcript.

A hook of the inner optimizer, set before the sync's own, sees the state after a step and before an exchange; a listener
of the sync sees what follows one. A run without `step_hashes` has neither.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowcomm.private_files import make_directory, protect
from lowcomm.state.report import SyncReport
from lowcomm.verification.leaf import island_leaf, shared_leaf
from lowcomm.verification.machine import machine_of
from lowcomm.verification.transcript import (
    COMMIT,
    MACHINE,
    START,
    STEP,
    Entry,
    Segment,
    Transcript,
    close,
    commit_line,
    entry_line,
    line,
    parse,
    path_of,
)

if TYPE_CHECKING:
    from lowcomm.data.shard import Shard
    from lowcomm.island import PlainIsland
    from lowcomm.state.state import SyncState


class StepRecord:
    """One process's part of it; lists have one entry per local island."""

    def __init__(self, islands: Sequence[PlainIsland]) -> None:
        """Call it before the sync hooks itself to the inner optimizers."""
        self.islands = islands
        self.open: list[list[Entry]] = [[] for _ in islands]
        """Entries since the last exchange."""
        self.last: list[Segment | None] = [None] * len(islands)
        self.chains = [b""] * len(islands)
        self.rounds = 0
        """Exchanges that were recorded, those before a resume included."""
        self.failure: str | None = None
        """Why nothing more is written, if so: a full disk does not stop a run."""
        self.step_taken: list[Callable[[int, int], None]] = []
        """Called with local island and inner step before the state is hashed."""
        self._state: SyncState | None = None
        self._shards: Sequence[Shard] = ()
        self._note: Callable[[str], None] = print
        self._files: list[int] = []
        for local, island in enumerate(islands):
            island.inner.register_step_post_hook(self._after_step_of(local))

    def start(self, directory: Path, state: SyncState, shards: Sequence[Shard], note: Callable[[str], None]) -> None:
        """Open the transcripts where the run begins or goes on: what was recorded of steps after that is cut off.

        directory: of the run. shards: of the local islands. note: tells people why nothing more is written.
        """
        self._state, self._shards, self._note = state, shards, note
        shared, machine = shared_leaf(state), machine_of(self.islands[0].device, torch.get_num_threads())
        for local, island in enumerate(state.transport.local):
            path, step = path_of(directory, island), state.replicas[local].steps
            found = _known(path, island, step)
            if found is None:
                start = Entry(kind=START, step=step, leaf=self._state_of(local, shared), island=island)
                text, self.chains[local] = entry_line(start), start.leaf
            else:
                text, self.chains[local] = found.text(), found.chain
                self.open[local], self.rounds = list(found.open), len(found.segments)
            make_directory(path.parent)
            partial = path.with_suffix(".partial")
            partial.write_text(text + line(MACHINE, machine), encoding="utf-8")
            protect(partial)
            partial.replace(path)
            self._files.append(os.open(path, os.O_WRONLY | os.O_APPEND))
        state.listeners.append(self._on_sync)

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.pop())

    def root(self, local: int) -> str | None:
        """Merkle root of a local island's last segment, in hexadecimal digits."""
        last = self.last[local]
        return None if last is None else last.root.hex()

    def summary(self) -> dict[str, Any]:
        """For summary.json: exchanges recorded, and the last value of the first local island's chain."""
        return {"rounds": self.rounds, "chain": self.chains[0].hex(), "failure": self.failure}

    def _after_step_of(self, local: int) -> Callable[..., None]:
        return lambda *_: self._after_step(local)

    def _after_step(self, local: int) -> None:
        state = self._state
        if state is None:
            return
        step = state.replicas[local].steps + 1  # the sync counts it after this
        for listener in self.step_taken:
            listener(local, step)
        leaf = island_leaf(self.islands[local], self._shards[local])
        entry = Entry(kind=STEP, step=step, leaf=leaf, island=state.transport.local[local])
        self.open[local].append(entry)
        self._append(local, entry_line(entry))

    def _on_sync(self, report: SyncReport) -> None:
        state = self._state
        assert state is not None
        shared = shared_leaf(state)
        self.rounds += 1
        for local, island in enumerate(state.transport.local):
            leaf = self._state_of(local, shared)
            entry = Entry(kind=COMMIT, step=state.replicas[local].steps, leaf=leaf, island=island)
            made = close(report.round.index, [*self.open[local], entry], self.chains[local])
            self.open[local], self.last[local], self.chains[local] = [], made, made.chain
            self._append(local, commit_line(made))

    def _state_of(self, local: int, shared: bytes) -> bytes:
        return sha256(island_leaf(self.islands[local], self._shards[local]) + shared).digest()

    def _append(self, local: int, text: str) -> None:
        if self.failure is not None:
            return
        try:
            os.write(self._files[local], text.encode())
        except OSError as error:
            self.failure = error.strerror or str(error)
            self._note(f"warning: hashes of steps are not written any more: {self.failure}")


def _known(path: Path, island: int, step: int) -> Transcript | None:
    """What was recorded until a step; None: nothing, or a record that begins later."""
    return parse(path.read_text(encoding="utf-8"), island, str(path)).until(step) if path.exists() else None
