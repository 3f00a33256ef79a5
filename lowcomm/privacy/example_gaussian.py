"""Example-level privacy: DP-SGD inside the island. With adapters it is DP-LoRA.

Abadi et al., DP-SGD, arXiv 1607.00133; Liu et al., DP-LoRA, arXiv 2312.17493.

    g <- 1 / B (sum_{x in batch} g_x min(1, C / ||g_x||) + N(0, (z C)^2))

g_x: gradient of the mean loss of one sequence over what is trained, fp32; C: `clip`; z: `noise_multiplier`; B: the
sequences of a step (batch_size times accumulation). The island does it (`island.PrivateIsland`), one sequence at a
time; Delta, codec, aggregation and the inner optimizer only see what is private already, so any of them will do.
Cost: no bytes; one backward per sequence.
Guarantee: for the text of one sequence, against everybody who sees payloads, models or checkpoints without `rng` parts;
islands trust nobody but themselves. The sampler is the one that runs: fixed-size batches without replacement from
an order drawn per epoch. Batches of an epoch do not overlap, so each sequence is in one step per epoch: k epochs begun
are k Gaussian mechanisms, and nothing is credited for the sampling (an epoch's order follows from the public seed). A
step across the end of an epoch may have a sequence twice: it counts as one mechanism of half the multiplier.
What is not covered: training losses in metrics.jsonl, and evaluation on the island's own held-out text.
Raises: ConfigError out of range, for batches larger than an epoch, streamed sources, islands of several ranks.
Deviates: no Poisson sampling and hence no amplification by it; documents that span sequences count as several.
Reduces to: plain training for noise_multiplier = 0 and a clip above every norm: bit for bit at batch_size = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lowcomm.privacy.mechanism import Draw, Mechanism, State
from lowcomm.types import Delta, require


@dataclass(frozen=True, kw_only=True)
class ExampleGaussian(Mechanism):
    """Gradients of single sequences clipped to `clip`, Gaussian noise on their sum, in every inner step."""

    clip: float = 1.0
    """C: L2 norm to which the gradient of one sequence is cut."""

    level: ClassVar[Literal["client", "example"]] = "example"

    @property
    def sensitivity(self) -> float:
        return self.clip

    def init(self) -> State:
        return {"clip": self.clip}

    def clip_and_noise(self, delta: Delta, draw: Draw, state: State) -> float | None:
        """Nothing: what an island trained is private already."""
        return None

    def check(self) -> None:
        super().check()
        ok = 0 < self.clip <= 1e30
        require(ok, "sync.privacy.clip", self.clip, "above 0, at most 1e30", "the norm of a usual gradient")
