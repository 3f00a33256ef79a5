"""Streaming DiLoCo: fragments sync in turn, and training goes on while one is on its way.

Douillard et al., Streaming DiLoCo with overlapping communication, arXiv 2501.18512.

    fragment p starts at steps t = p's phase modulo H, phases H / P apart
    theta_p(t + tau) = alpha theta_p,local(t + tau) + (1 - alpha) theta_p,global(t)

H: `sync.every`; P: `fragments`; tau: `delay`; alpha: `alpha`; theta_p,global(t): the outer step on what started at t.
With alpha = None: theta_p,global(t) + theta_p,local(t + tau) - theta_p,local(t), which loses no local step.
Cost: one model of payload per island each way, every H steps; the peak is one fragment, within tau steps.
Memory: no more than without a delay: the pseudo-gradient is kept until it lands.
Raises: ConfigError for delay >= H / fragments, alpha = 0 with a delay (which would discard the steps since t), or
more fragments than layers.
Deviates: alpha = None is not in the paper, where alpha is 0.5; the first round of each fragment is shorter than H.
Reduces to: fragments = 1, delay = 0 => EveryH (DiLoCo), bit for bit, whatever alpha is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lowcomm.schedule.base import Action, Schedule, check_every
from lowcomm.schedule.layers import by_size, strided
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Streaming(Schedule):
    """One fragment after the other, each committed `delay` steps after it started."""

    fragments: int = 4
    """Fragments that the model is cut into, synced at equal distances within H steps."""
    delay: int = 0
    """Inner steps between the start of an exchange and its commit, below H / fragments."""
    alpha: float | None = None
    """Share of the local weights when a delayed fragment lands, 0 < alpha < 1; None keeps all local progress."""
    by: Literal["strided", "size"] = "strided"
    """Cut by layers in turn (layer modulo fragments), or by size in the model's order."""

    @property
    def overlaps(self) -> bool:
        return self.delay > 0

    def __call__(self, step: int, every: int) -> Action:
        phases = [((p + 1) * every // self.fragments) % every for p in range(self.fragments)]
        start = tuple(p for p, phase in enumerate(phases) if step % every == phase)
        begun = step - self.delay
        due = tuple(p for p, phase in enumerate(phases) if self.delay and begun > 0 and begun % every == phase)
        return Action(sync=start, commit=due)

    def partition(self, sizes: Mapping[str, int]) -> list[list[str]]:
        if self.fragments == 1:
            return [list(sizes)]
        return (strided if self.by == "strided" else by_size)(sizes, self.fragments)

    def check(self, every: int, steps: int | None) -> None:
        check_every(every, steps)
        fix = "fewer fragments, or a larger --sync.every"
        require(
            1 <= self.fragments <= every, "sync.schedule.fragments", self.fragments, f"1 to {every}, sync.every", fix
        )
        gap = min((p + 1) * every // self.fragments - p * every // self.fragments for p in range(self.fragments))
        legal = f"0 to {gap - 1}, below sync.every / fragments"
        require(0 <= self.delay < gap, "sync.schedule.delay", self.delay, legal, "a shorter delay, or fewer fragments")
        ok = self.alpha is None or 0 <= self.alpha < 1
        require(ok, "sync.schedule.alpha", self.alpha, "0 < alpha < 1, or None", "leave it out: nothing is lost then")
        lost = self.delay > 0 and self.alpha == 0
        fix = "leave it out: nothing is lost then"
        require(
            not lost, "sync.schedule.alpha", self.alpha, "above 0 with a delay: 0 discards the steps under way", fix
        )
        require(self.by in ("strided", "size"), "sync.schedule.by", self.by, "strided or size", "strided")
