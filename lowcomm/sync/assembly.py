"""The assembly of a sync's state from its spec: handshake, outer optimizers, codec states, hooks, exchange."""

from __future__ import annotations

from collections.abc import Callable

from lowcomm.exchange.base import ExchangeParts
from lowcomm.exchange.choose import choose
from lowcomm.exchange.gossip import Gossip
from lowcomm.exchange.worker import Worker, may_overlap
from lowcomm.hooks.buffers import BufferAverage
from lowcomm.hooks.choose import hooks_of, privacy_of, pruning_of
from lowcomm.hooks.lora import rest_untrained
from lowcomm.hooks.pull import Pull
from lowcomm.state.norms import NormHistory
from lowcomm.state.replica import Replica
from lowcomm.state.spec import SyncSpec
from lowcomm.state.state import SyncState
from lowcomm.sync.handshake import prepare
from lowcomm.sync.wrapped import claim
from lowcomm.transport import Transport


def assemble(
    spec: SyncSpec,
    transport: Transport,
    replicas: list[Replica],
    before_step: Callable[[], None],
    after_step: Callable[[int], None],
) -> SyncState:
    """Build the state; every island calls it. before_step, after_step: around each inner step of a local island.

    Raises ConfigError, CoverageError or DivergenceError.
    """
    state = SyncState(spec, transport, replicas)
    state.worker = Worker(beside=may_overlap(transport, spec.codec, [r.held for r in replicas]))
    buffers = prepare(state, own_anchors=spec.exchange is not None and spec.exchange.anchors == "own")
    for anchors in state.anchors:
        for anchor in anchors:
            anchor.build_outer(spec.outer)
    fragments = range(len(state.fragments))
    if replicas[0].shares_model:
        state.shared_codec_states = {j: spec.codec.init(state.anchor_of(j, 0).named) for j in fragments}
        state.codec_states = [list(state.shared_codec_states.values()) for _ in replicas]
    else:
        for i in range(len(replicas)):
            state.codec_states.append([spec.codec.init(state.anchor_of(j, i).named) for j in fragments])
    state.rule_states = [{} for _ in fragments]
    state.norms = [NormHistory(bound=spec.judged_norms) for _ in fragments]
    for index, replica in enumerate(replicas):
        claim(replica.inner)
        replica.inner.register_step_pre_hook(lambda *_: before_step())
        replica.inner.register_step_post_hook(lambda *_, i=index: after_step(i))
    rest_untrained(spec.aggregator, replicas, lambda: state.round)
    state.privacy = privacy_of(spec, transport)
    state.rank_pruning = pruning_of(spec, replicas, transport)
    if buffers is not None:
        state.buffer_average = BufferAverage(buffers, replicas, transport, state.worker)
    state.hooks = hooks_of(
        spec, replicas, state.anchors, transport,
        privacy=state.privacy, buffers=state.buffer_average, pruning=state.rank_pruning,
    )  # fmt: skip
    parts = ExchangeParts(
        transport=transport, codec=spec.codec, aggregator=spec.aggregator, quorum=spec.quorum, every=spec.every,
        round_seed=spec.round_seed, anchors=state.anchors, deadlines=state.deadlines, consistency=state.consistency,
        worker=state.worker, seed=spec.seed,
    )  # fmt: skip
    clients = spec.clients
    state.exchange = choose(parts, spec.exchange, clients.sampling is not None, clients.secure)
    if isinstance(spec.exchange, Gossip) and spec.exchange.rule.pulls:
        Pull(state.exchange, replicas, state.anchors)
    return state
