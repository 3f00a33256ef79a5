"""One fragment's way through codec, transport and aggregation; nothing is committed here.

Five ways: fp32 vectors summed as they are; packed chunks summed by all-to-all (`compressed_sum`); packed vectors that
go to all (`compressed_share`); any payloads gathered and decoded by every island (`compressed_gather`), so also where
only some islands were sampled; masked integers (`secure_sum`).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lowcomm.aggregate.base import Aggregator
from lowcomm.codec.base import Codec, State
from lowcomm.codec.dense import Dense
from lowcomm.codec.error_feedback import ErrorFeedback
from lowcomm.codec.fp32 import Fp32
from lowcomm.round.compressed import Crossing, Exchanged
from lowcomm.round.compressed_gather import gather_payloads
from lowcomm.round.compressed_share import share_packed
from lowcomm.round.compressed_sum import sum_packed
from lowcomm.round.fragment import Fragment
from lowcomm.round.present_sum import sum_present
from lowcomm.round.roll_call import RollCall, call_roll
from lowcomm.round.secure_sum import sum_masked
from lowcomm.secure import SecureSum
from lowcomm.transport.base import Transport
from lowcomm.types import ConfigError, Round

__all__ = ["Exchanged", "RollCall", "aggregate_into_mean", "call_roll", "check_fit", "codec_is_identity"]


def aggregate_into_mean(
    fragment: Fragment,
    deltas: Sequence[Tensor],
    transport: Transport,
    codec: Codec,
    aggregator: Aggregator,
    states: Sequence[State],
    roll: RollCall,
    round: Round,
    quorum: float = 0.5,
    secure: SecureSum | None = None,
) -> Exchanged:
    """Fill `fragment.mean` with the aggregate of all islands' deltas.

    deltas: flat fp32 of `fragment.size`, one per local island; those of islands that are left out may be overwritten,
    and the first one is if the mean lies there (`Fragment.overwrite_delta`).
    Returns the codec states to commit, and the roll without the islands whose payloads turned out to be unusable.
    Raises SyncError, on every island alike.
    """
    sampled = roll.expected is not None
    if codec_is_identity(codec) and aggregator.needs == "sum" and secure is None:
        if sampled:
            sum_present(transport, deltas, roll.weights, fragment.mean)
        else:
            transport.weighted_sum(deltas, roll.weights, fragment.mean)
        return Exchanged(states=list(states), roll=roll)
    crossing = Crossing(
        fragment=fragment,
        transport=transport,
        codec=codec,
        aggregator=aggregator,
        states=list(states),
        roll=roll,
        round=round,
        quorum=quorum,
    )
    if secure is not None:
        return sum_masked(crossing, secure, deltas)
    dense = codec.codec if isinstance(codec, ErrorFeedback) else codec
    if isinstance(dense, Dense) and aggregator.needs == "sum" and not sampled:
        # with two islands sharing sends the same bytes and rounds once
        on_the_way = dense.sums_on_the_way and (transport.islands > 2 or dense.only_sums)
        return (sum_packed if on_the_way else share_packed)(crossing, dense, deltas)
    return gather_payloads(crossing, deltas)


def mean_may_overwrite(codec: Codec, aggregator: Aggregator) -> bool:
    """Whether `fragment.mean` may lie where the first local island's delta does.

    Vectors that are summed as they are are summed in place; packed ones have been encoded before the first sum.
    """
    dense = codec.codec if isinstance(codec, ErrorFeedback) else codec
    return aggregator.needs == "sum" and (codec_is_identity(codec) or isinstance(dense, Dense))


def check_fit(codec: Codec, aggregator: Aggregator) -> None:
    """Raise ConfigError for a codec and an aggregator that can't work together."""
    if aggregator.needs == "each" and codec.sums_on_the_way:
        field = "sync.codec.codec" if isinstance(codec, ErrorFeedback) else "sync.codec"
        raise ConfigError(
            f"{field}.exchange = 'reduce' is not allowed: {type(aggregator).__name__} must see each contribution, and "
            f"{type(codec).__name__} sums them on the way. Fix: {field}.exchange = 'gather', or the aggregator Mean"
        )


def codec_is_identity(codec: Codec) -> bool:
    """Whether fp32 vectors may be summed on the way without being encoded at all (their error feedback stays 0)."""
    inner = codec.codec if isinstance(codec, ErrorFeedback) else codec
    return isinstance(inner, Fp32)
