"""Example-level privacy: DP-SGD inside the island. With adapters it is DP-LoRA.

Abadi et al., DP-SGD, arXiv 1607.00133; Liu et al., DP-LoRA, arXiv 2312.17493.

    g <- 1 / B (sum_{x in batch} g_x min(1, C / ||g_x||) + N(0, (z C)^2))

g_x: gradient of the mean loss of one sequence over what is trained, fp32; C: `clip`; z: `noise_multiplier`; B: the
sequences of a step (batch_size times accumulation). The island does it (`island.PrivateIsland`), one sequence at a
time; Delta, codec, aggregation and the inner optimizer only see what is private already, so any of them will do. An
island weighs by B, not by what its sequences hold.
Cost: no bytes; one backward per sequence.
Guarantee: for the text of one sequence, against everybody who sees payloads, models or checkpoints without `rng` parts;
islands trust nobody but themselves. The accountant gets the sampler that runs.
batches = "epochs": batches of fixed size without replacement from an order drawn per epoch. Those of an epoch do not
overlap, so each sequence is in one step per epoch: k epochs begun are k Gaussian mechanisms, and nothing is credited
for the sampling (an epoch's order follows from the public seed). A step across the end of an epoch may have a sequence
twice: it counts as one mechanism of half the multiplier.
batches = "poisson": each sequence is in a step's batch with probability q = B / (sequences of the island), which is
public; B is the expected number, the one that is divided by, and an empty batch adds noise alone. k steps are k Poisson
sampled Gaussian mechanisms. Draws come from the island's own key, as noise does: for somebody who knew them a step
would count as one that is not sampled.
What is not covered: training losses in metrics.jsonl, how long a step takes (Poisson batches vary in size), and
evaluation on the island's own held-out text.
Raises: ConfigError out of range, for batches larger than an epoch, streamed sources, islands of several ranks; for
Poisson batches with accumulation, as one sequence could then be in a step twice.
Deviates: documents that span sequences count as several.
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

    batches: Literal["epochs", "poisson"] = "epochs"
    """How sequences come into batches: each once per epoch, or by chance in every step (amplified by sampling)."""

    level: ClassVar[Literal["client", "example"]] = "example"

    @property
    def by_chance(self) -> bool:
        return self.batches == "poisson"

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
        ok = self.batches in ("epochs", "poisson")
        require(ok, "sync.privacy.batches", self.batches, "epochs or poisson", "poisson is amplified by sampling")
