"""Eager updates: an island applies its own share of a round at once, the rest of it one round later.

Kale, Douillard, Donchev, Eager updates for overlapped communication and computation in DiLoCo, arXiv 2502.12996.

    after round t:  Delta_m,t = s_m,t - theta_m,  starts on its way
    what started one round before lands:  theta_global <- outer(theta_global, mean Delta_{t-1})
    s_m,t+1 = theta_global - (gain / n) Delta_m,t

s_m: where island m starts its round; theta_m: where it ends; n: islands; gain: `gain`. The paper's islands each take
an outer step on `Delta_m,t / n + (mean Delta_{t-1} - Delta_m,t-1 / n)`: fresh from themselves, stale from the others.
Cost: one model of payload per island each way, every H steps, with H steps of time for it.
Memory: no more than a schedule that waits: the pseudo-gradient is kept until it lands.
Raises: ConfigError for a period or gain out of range.
Deviates: the outer optimizer sees only the mean, so that its state and the global weights have the same bits on every
island; an island's own momentum does not run ahead. `gain` = lr (1 + momentum) of an outer Nesterov is nearest to the
paper. The share is 1 / n whatever the weights of the mean will be.
Reduces to: OneStepDelay for gain = n (all of its own, nothing of the others'); gain = 0 is a delayed outer step.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowcomm.schedule.base import Action, Schedule, check_every
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Eager(Schedule):
    """Each sync has the whole next round to arrive; meanwhile an island goes on from its own part of it."""

    gain: float = 1.0
    """Size of the step that an island takes on its own part of the mean, 0 or more; 1 is an average's."""

    @property
    def overlaps(self) -> bool:
        return True

    def own_share(self, islands: int) -> float:
        return self.gain / islands

    def __call__(self, step: int, every: int) -> Action:
        if step % every:
            return Action()
        return Action(sync=(0,), commit=(0,) if step > every else ())

    def check(self, every: int, steps: int | None) -> None:
        check_every(every, steps)
        ok = 0 <= self.gain < float("inf")
        require(ok, "sync.schedule.gain", self.gain, "a finite number, 0 or more", "1 is an average's step")
