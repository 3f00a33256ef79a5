"""The parts of whole vectors that the ranks of an island hold.

Islands under DDP, FSDP2, ZeRO and a pipeline cut a parameter, if at all, into runs of elements that lie one after the
other in the order of the ranks: rows, or pieces of the flat vector. So a rank's sizes say which elements it has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lowcomm.island import Mesh
from lowcomm.island.part import gather_texts
from lowcomm.state.state import SyncState
from lowcomm.store.layout import Layout
from lowcomm.types import CoverageError

Runs = list[tuple[int, int]]
"""Start and length in the whole vector, in the order of the rank's own; a start below 0 is a filler's."""


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Of all ranks of an island. runs: by rank, then by fragment."""

    mesh: Mesh
    layouts: Sequence[Layout]
    runs: list[list[Runs]]

    @classmethod
    def of(cls, mesh: Mesh, state: SyncState, layouts: Sequence[Layout]) -> Pieces:
        """All ranks call it alike. Raises CoverageError unless they hold each element once."""
        own = [list(zip(f.names, [math.prod(s) for s in f.shapes], strict=True)) for f in state.fragments]
        rows = [json.loads(text) for text in gather_texts(mesh, json.dumps(own))]
        places = [_places(layout) for layout in layouts]
        taken: dict[str, int] = {}
        runs: list[list[Runs]] = []
        for row in rows:
            mine: list[Runs] = []
            for fragment, held in enumerate(row):
                found: Runs = []
                for name, numel in held:
                    start = places[fragment].get(name, (-1, 0))[0]
                    at = taken.get(name, 0)
                    found.append((start if start < 0 else start + at, numel))
                    taken[name] = at + numel
                mine.append(found)
            runs.append(mine)
        for layout in places:
            for name, (_, numel) in layout.items():
                if taken.get(name, 0) != numel:
                    raise CoverageError(f"{name} has {numel} elements, the island's ranks hold {taken.get(name, 0)}")
        return cls(mesh=mesh, layouts=layouts, runs=runs)

    def cut(self, fragment: int, whole: Tensor) -> Tensor:
        """This rank's part of a whole vector."""
        mine = self.runs[self.mesh.rank][fragment]
        parts = [whole[start : start + n] if start >= 0 else torch.zeros(n) for start, n in mine]
        return torch.cat(parts) if parts else whole[:0]

    def join(self, fragment: int, mine: Tensor) -> Tensor | None:
        """The whole vector, on the first rank; None elsewhere. All ranks call it alike."""
        if self.mesh.rank:
            dist.send(mine.contiguous(), group_dst=0, group=self.mesh.inside)
            return None
        whole = torch.zeros(self.layouts[fragment].numel)
        for rank in range(self.mesh.size):
            runs = self.runs[rank][fragment]
            held = mine
            if rank:
                held = torch.empty(sum(n for _, n in runs))
                dist.recv(held, group_src=rank, group=self.mesh.inside)
            at = 0
            for start, n in runs:
                if start >= 0:
                    whole[start : start + n] = held[at : at + n]
                at += n
        return whole


def _places(layout: Layout) -> dict[str, tuple[int, int]]:
    """Start and elements of each tensor in the whole vector."""
    found: dict[str, tuple[int, int]] = {}
    start = 0
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        found[name] = (start, math.prod(shape))
        start += math.prod(shape)
    return found
