"""The choice of an exchange, once, when a sync is built."""

from __future__ import annotations

from lowcomm.aggregate import Aggregator
from lowcomm.codec import Codec, Fp32
from lowcomm.codec.dense import Dense
from lowcomm.exchange.base import Exchange, ExchangeChoice, ExchangeParts, Way
from lowcomm.exchange.gather import Gather
from lowcomm.exchange.lockstep import Lockstep
from lowcomm.exchange.reduce_packed import ReducePacked
from lowcomm.exchange.secure import Masked
from lowcomm.exchange.share_packed import SharePacked
from lowcomm.exchange.sum import Sum
from lowcomm.secure import SecureSum
from lowcomm.transport import Transport


def choose(parts: ExchangeParts, choice: ExchangeChoice | None, sampled: bool, secure: SecureSum | None) -> Exchange:
    """The exchange of a sync. sampled: whether islands may sit rounds out; secure: masks on contributions."""
    if choice is not None:
        return choice.build(parts)
    ways = [
        way_of(parts.transport, codec, parts.aggregator, parts.quorum, sampled, secure)
        for codec in (parts.codec, parts.codec.last_merge)
    ]
    return Lockstep(ways[0], ways[1], parts)


def way_of(
    transport: Transport,
    codec: Codec,
    aggregator: Aggregator,
    quorum: float = 0.5,
    sampled: bool = False,
    secure: SecureSum | None = None,
) -> Way:
    """How payloads of this codec become the aggregate.

    fp32 vectors are summed as they are; dense payloads are reduced on the way, or shared where there are two islands or
    the codec asks for it; all others are gathered, dense ones too where islands may sit a round out; masked integers.
    """
    if secure is not None:
        return Masked(transport=transport, codec=codec, aggregator=aggregator, quorum=quorum, secure=secure)
    bare = codec.bare
    if isinstance(bare, Fp32) and aggregator.needs == "sum":  # fp32's error feedback stays 0
        kind = Sum
    elif isinstance(bare, Dense) and aggregator.needs == "sum" and not sampled:
        # with two islands sharing sends the same bytes and rounds once
        on_the_way = bare.sums_on_the_way and (transport.islands > 2 or bare.only_sums)
        kind = ReducePacked if on_the_way else SharePacked
    else:
        kind = Gather
    return kind(transport=transport, codec=codec, aggregator=aggregator, quorum=quorum)
