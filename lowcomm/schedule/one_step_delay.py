"""One-step-delay overlap: a round's update travels while the whole next round is trained.

Qi et al., DiLoCoX, arXiv 2506.21263.

    after round t:  Delta_t = theta_global - theta_local,  starts on its way
    after round t + 1:  theta_global <- outer(theta_global, mean Delta_t),
                        theta_local <- theta_global + what was trained in round t + 1,  then Delta_{t+1} starts

The inner optimizer goes on undisturbed, the outer one steps one round late: the paper's dual optimizer.
Cost: one model of payload per island each way, every H steps, with H steps of time for it.
Memory: no more than a schedule that waits: the pseudo-gradient is kept until it lands.
Raises: ConfigError for a period out of range.
Deviates: the first round's update lands after the second round, and `finish` merges the last one without delay.
Reduces to: training alone for one island with outer SGD of rate 1, within rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowcomm.schedule.base import Action, Schedule, check_every


@dataclass(frozen=True, kw_only=True)
class OneStepDelay(Schedule):
    """Each sync has the whole next round to arrive."""

    @property
    def overlaps(self) -> bool:
        return True

    def __call__(self, step: int, every: int) -> Action:
        if step % every:
            return Action()
        return Action(sync=(0,), commit=(0,) if step > every else ())

    def check(self, every: int, steps: int | None) -> None:
        check_every(every, steps)
