"""The memory of a simulation whose islands take turns on one model, without activations and what torch itself takes.

Bytes per parameter in fp32: all 4 of the model, once. Of what is trained, once: the shared copy 4, the anchor 4, the
outer momentum 4 and the mean 4; for each client while it is in a round: weights 4 and its Delta 4; AdamW's moments 8,
of each that has been in a round, or of those in one where rounds begin with fresh ones; of each that has been in one 4
for error feedback and 4 for control variates.
"""

from __future__ import annotations

from dataclasses import dataclass

MODEL_BYTES, ONCE_BYTES, ROUND_BYTES, MOMENTS_BYTES, KEPT_BYTES = 4.0, 16.0, 8.0, 8.0, 4.0


@dataclass(frozen=True, kw_only=True)
class SimulationMemory:
    """Bytes, of all islands together."""

    model_bytes: float
    """Model, shared copy, anchor, outer momentum and mean."""
    round_bytes: float
    """While the clients of one round have weights and Deltas of their own, and fresh moments."""
    kept_bytes: float
    """What clients keep between their rounds, once each has been in one: in memory, or on disk."""


def simulation_memory(
    *, parameters: float, trainable: float, clients: int, sampled: int, adamw: bool, fresh: bool = False, kept: int = 0
) -> SimulationMemory:
    """What so many clients take, of which `sampled` are in a round.

    adamw: whether they have moments. fresh: whether these are new in each round. kept: of error feedback and control
    variates, how many they have.
    """
    moments = MOMENTS_BYTES if adamw else 0.0
    each = (0.0 if fresh else moments) + KEPT_BYTES * kept
    in_round = ROUND_BYTES + (moments if fresh else 0.0)
    return SimulationMemory(
        model_bytes=MODEL_BYTES * parameters + ONCE_BYTES * trainable,
        round_bytes=in_round * trainable * sampled,
        kept_bytes=each * trainable * clients,
    )
