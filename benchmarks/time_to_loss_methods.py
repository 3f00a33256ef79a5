"""Who runs until DDP's loss in benchmarks/time_to_loss.py, and from which length of run on."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.headline_methods import BASE, METHODS, Method

MUON_BASE = "DDP (torch), Muon inside"
ALONE = "one island alone"
LENGTHS = (1.0, 1.25, 1.5, 2.0, 3.0)
"""Of a run, in those of DDP's: each has a learning rate that ends with it. The last one is what may be spent."""


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One row of the comparison."""

    name: str
    recipe: str
    """Function of headline_recipes that `lowcomm simulate` runs."""
    timed_as: str | None = None
    """Row of benchmarks/results/headline.json with its seconds of a step and of a sync; None: never synced."""
    peer: Method | None = None
    """Trained by its own two processes, not simulated."""
    first: float = 1.0
    """Shortest length that is tried: where not 1, seed 0 was 1.4 % and more behind at 1 (results/headline.json)."""
    base: str = BASE
    """DDP with the same inner optimizer."""
    islands: int = 2

    @property
    def key(self) -> str:
        """For file names."""
        return "".join(c if c.isalnum() else "-" for c in self.name.lower()).strip("-")

    @property
    def lengths(self) -> tuple[float, ...]:
        """What is tried, one after another, until DDP's last loss is reached."""
        if self.name in (BASE, MUON_BASE):
            return (1.0,)
        if self.islands == 1:
            return (1.0, 2.0, 3.0)
        return tuple(length for length in LENGTHS if length >= self.first)


_BY_NAME = {m.name: m for m in METHODS}


def _ours(
    name: str, recipe: str, *, first: float = 1.0, timed_as: str | None = None, base: str = BASE, islands: int = 2
) -> Entrant:
    return Entrant(name=name, recipe=recipe, first=first, timed_as=timed_as or name, base=base, islands=islands)


def _peer(name: str, first: float = 1.0) -> Entrant:
    method = _BY_NAME[name]
    return Entrant(name=name, recipe=method.recipe, timed_as=name, peer=method, first=first)


ENTRANTS = (
    _ours(BASE, "ddp"),
    Entrant(name=ALONE, recipe="ddp", islands=1),
    _ours("lowcomm DiLoCo fp32", "diloco"),
    _ours("lowcomm MuLoCo 2-bit", "muloco_two_bit", base=MUON_BASE),
    _ours("lowcomm MuLoCo 2-bit streaming, overlap", "muloco_streaming", base=MUON_BASE),
    _ours("lowcomm int4 streaming, overlap", "int4_streaming", first=1.5),
    _ours("lowcomm DiLoCo fp32, Pier", "diloco_warmed", timed_as="lowcomm DiLoCo fp32"),
    _ours("lowcomm int4 streaming, Pier, overlap", "int4_warmed", timed_as="lowcomm int4 streaming, overlap"),
    _ours("lowcomm sparse kept, overlap", "sparse_kept_overlap", first=2.0),
    _ours("lowcomm growing H, Muon, 2-bit", "growing_two_bit", timed_as="lowcomm MuLoCo 2-bit", base=MUON_BASE),
    _ours(MUON_BASE, "ddp_muon", base=MUON_BASE),
    _ours("lowcomm SparseLoCo, overlap", "sparseloco_overlap", first=3.0),
    _peer("DDP, bf16 hook"),
    _peer("DDP, PowerSGD hook", first=3.0),
    _peer("accelerate LocalSGD"),
    _peer("torchft DiLoCo"),
)
"""DDP's first: the others run until its losses. torch's and lowcomm's give the same loss; lowcomm's is simulated."""
