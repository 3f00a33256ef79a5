"""What a run's codec gives away, for its log and its summary: None for codecs that promise no privacy."""

from __future__ import annotations

from lowcomm.codec import Codec, ErrorFeedback, Rqm
from lowcomm.privacy import RqmAccountant

DELTA = 1e-5
"""Delta at which epsilon is reported."""


def privacy_spent(codec: Codec, parameters: int, rounds: int) -> dict[str, float] | None:
    """Epsilon of one round and of `rounds` rounds of `parameters` elements each, at `DELTA`.

    Error feedback changes what goes into a round, not what its randomness hides of it.
    """
    inner = codec.codec if isinstance(codec, ErrorFeedback) else codec
    if not isinstance(inner, Rqm):
        return None
    accountant = RqmAccountant(
        clip=inner.clip, margin=inner.margin, levels=inner.levels, keep=inner.keep, elements=max(1, parameters)
    )
    return accountant.report(rounds, DELTA)
