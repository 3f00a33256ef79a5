"""Late merge: islands train alone, and a budget of syncs is spent at the end, H steps apart.

Wortsman et al., Model soups, arXiv 2203.05482 (one merge at the end); Frankle et al., arXiv 1912.05671, on which runs
can be averaged.

    syncs after steps T, T - H, ..., T - (m - 1) H

T: `steps` of the run; H: `sync.every`; m: `merges`.
Cost: m models of payload per island each way in the whole run.
Raises: ConfigError for a number of merges that does not fit the run, or steps that are not the run's.
Deviates: the papers average weights; here the outer optimizer decides, and SGD of rate 1 is the average.
Reduces to: EveryH for m = T / H; a single average of independent runs for m = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowcomm.schedule.base import Action, Schedule
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class LateMerge(Schedule):
    """The last `merges` rounds end in a sync, the ones before them do not."""

    steps: int
    """Inner steps of the whole run."""
    merges: int = 1
    """Number of syncs in the whole run, the last one at its end."""

    def __call__(self, step: int, every: int) -> Action:
        left = self.steps - step
        return Action(sync=(0,) if left >= 0 and left % every == 0 and left // every < self.merges else ())

    def check(self, every: int, steps: int | None) -> None:
        require(every >= 1, "sync.every", every, "1 or more", "32 suits short runs")
        same = steps is None or steps == self.steps
        fix = "give both the same number of steps"
        require(same, "sync.schedule.steps", self.steps, f"the run's own steps ({steps})", fix)
        most = self.steps // every
        fix = "fewer merges, or a smaller --sync.every"
        require(1 <= self.merges <= most, "sync.schedule.merges", self.merges, f"1 to {most}, steps / every", fix)
