"""The part of the table of `compatibility` for islands with anchors of their own, which exchange with neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lowcomm.codec import Codec, Fp32, Rqm
from lowcomm.codec.dense import Dense
from lowcomm.codec.error_feedback import ErrorFeedback
from lowcomm.codec.parts import Parts
from lowcomm.exchange.gossip import Gossip
from lowcomm.exchange.modest import Modest
from lowcomm.exchange.public_copies import contraction
from lowcomm.outer import SGD
from lowcomm.schedule import EveryH
from lowcomm.state.conflict import Conflict
from lowcomm.state.spec import SyncSpec
from lowcomm.sync.store_conflicts import of_store


def own_anchors(spec: SyncSpec) -> Iterator[Conflict]:
    """What needs one set of weights that all islands share, or can't go to neighbours."""
    choice, codec = spec.exchange, spec.codec
    yield from of_store(spec)
    if choice is None or choice.anchors == "shared":
        return
    other, name, bare = f"sync.exchange = {_name(choice)}", _name(codec), codec.bare
    if isinstance(choice, Gossip):
        yield from _rule(spec, choice)
    if isinstance(choice, Modest):
        yield from _sampled(spec)
    if not isinstance(choice, Gossip) or isinstance(codec, Fp32):
        return
    why, fix = None, "use Int4 or TopK"
    if isinstance(codec, ErrorFeedback):
        why, fix = "what was not sent to a neighbour stays in its public copy", f"unwrap it: {_name(bare)}"
    elif isinstance(bare, Parts):
        why = "neighbours mix whole models"
    elif isinstance(bare, Rqm):
        why = "its noise is counted for one sum of all islands"
    elif isinstance(bare, Dense) and bare.only_sums:
        why = "its contributions mean something in a sum only"
    elif not codec.fixed_size:
        why = "neighbours must know beforehand how many bytes come"
    elif keeps_state(codec):
        why = "its state is that of one receiver, and each neighbour gets another payload"
    elif contraction(codec) <= 0:
        why = "one message takes a neighbour's copy farther from the weights that it is to follow"
    if why is not None:
        yield Conflict("sync.codec", name, other, why, fix)


def _sampled(spec: SyncSpec) -> Iterator[Conflict]:
    """What samples of islands need, which hand whole models on."""
    other = "sync.exchange = Modest"
    if not isinstance(spec.codec, Fp32):
        yield Conflict("sync.codec", _name(spec.codec), other, "whole models go from island to island", "use Fp32()")
    if spec.outer != SGD(lr=1.0):
        yield Conflict("sync.outer", spec.outer, other, "an island takes models as they come", "use SGD(lr=1.0)")
    if not isinstance(spec.schedule, EveryH):
        why = "islands that are not sampled rest for rounds of one length"
        yield Conflict("sync.schedule", _name(spec.schedule), other, why, "use EveryH")


def _rule(spec: SyncSpec, choice: Gossip) -> Iterator[Conflict]:
    """What a rule of mixing, a memory or a plan of churn needs of the others."""
    rule, outer = choice.rule, spec.outer
    name = f"sync.exchange.rule = {_name(rule)}"
    if (rule.whole or rule.vectors > 1) and not isinstance(spec.codec, Fp32):
        why = "it needs neighbours' vectors as they are, not copies that lag behind"
        yield Conflict("sync.codec", _name(spec.codec), name, why, "use Fp32(), or PlainMixing()")
    if rule.plain_outer and outer != SGD(lr=1.0):
        yield Conflict("sync.outer", outer, name, "the rule is the step on the weights", "use SGD(lr=1.0)")
    if choice.steps > 1 and not rule.repeats:
        why = "it is one step per round"
        yield Conflict("sync.exchange.steps", choice.steps, name, why, "use PlainMixing(), or steps=1")
    if not rule.remembers:
        why = "what a neighbour said in an earlier round is of no use to it"
        if choice.memory is not None:
            yield Conflict("sync.exchange.memory", choice.memory, name, why, "leave it out")
        if choice.topology.remembers:
            yield Conflict("sync.exchange.topology", _name(choice.topology), name, why, "use PlainMixing()")
    if choice.topology.remembers and choice.steps > 1:
        why = "an edge rests for whole rounds"
        yield Conflict("sync.exchange.steps", choice.steps, f"topology = {_name(choice.topology)}", why, "steps=1")
    if choice.churn is not None and not isinstance(spec.schedule, EveryH):
        why = "islands that are lost rest for rounds of one length"
        yield Conflict("sync.schedule", _name(spec.schedule), "sync.exchange.churn", why, "use EveryH")


def with_own_anchors(spec: SyncSpec, ranks: int, averaged: Sequence[str]) -> Iterator[Conflict]:
    """What islands of several ranks, or buffers that all islands average, need of them."""
    if spec.exchange is None or spec.exchange.anchors == "shared":
        return
    other = f"sync.exchange = {_name(spec.exchange)}"
    if ranks > 1 and not spec.exchange.whole_islands:
        why = "which neighbours count is decided by each island as a whole"
        yield Conflict("island.size", ranks, other, why, "islands of one rank")
    if averaged:
        why = f"{', '.join(averaged)} would be averaged over all islands"
        yield Conflict("buffers", None, other, why, "keep them local, buffers={'*': 'local'}")


def keeps_state(codec: Codec) -> bool:
    """Whether a codec carries anything from round to round."""
    return bool(codec.init({"probe": torch.zeros(8, 8)}))


def _name(part: object) -> str:
    return type(part).__name__
