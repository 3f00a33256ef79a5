"""The choice of hooks, once, when a sync is built."""

from __future__ import annotations

from lowcomm.aggregate.lora.rule import LoraRule
from lowcomm.aggregate.loss_weighted import LossWeighted
from lowcomm.codec import Codec
from lowcomm.hooks.attack import Corruption
from lowcomm.hooks.base import Hook
from lowcomm.hooks.buffers import BufferAverage
from lowcomm.hooks.control_variates import ControlVariates
from lowcomm.hooks.fresh_inner import FreshInner
from lowcomm.hooks.local_objective import LocalObjective
from lowcomm.hooks.lora import LoraAdapters
from lowcomm.hooks.loss_weights import LossWeights
from lowcomm.hooks.moments import MomentAverage
from lowcomm.hooks.privacy import Privacy
from lowcomm.hooks.private_tensors import PrivateTensors
from lowcomm.hooks.rank_pruning import RankPruning
from lowcomm.state.anchor import Anchor
from lowcomm.state.replica import Replica
from lowcomm.state.spec import SyncSpec
from lowcomm.transport import Transport


def privacy_of(spec: SyncSpec, transport: Transport) -> Privacy | None:
    """The hook of the privacy mechanism, if there is one."""
    return None if spec.privacy is None else Privacy(spec.privacy, spec, transport)


def pruning_of(spec: SyncSpec, replicas: list[Replica], transport: Transport) -> RankPruning | None:
    """The hook of LoRA ranks that shrink, if they do."""
    rule = spec.aggregator
    return RankPruning(rule, replicas, transport) if isinstance(rule, LoraRule) and rule.shrinks else None


def hooks_of(
    spec: SyncSpec,
    replicas: list[Replica],
    anchors: list[list[Anchor]],
    transport: Transport,
    *,
    privacy: Privacy | None,
    buffers: BufferAverage | None,
    pruning: RankPruning | None,
) -> list[Hook]:
    """The hooks in use, in the order of a round: what they write is put into the models in the reverse order."""
    attack = spec.clients.attack
    corruption = None if attack is None else Corruption(attack, transport)
    hooks: list[Hook] = [hook for hook in (corruption, privacy, buffers) if hook is not None]
    lora = None
    if isinstance(spec.aggregator, LoraRule):
        lora = LoraAdapters(spec.aggregator, replicas, anchors, transport, pruning)
    if isinstance(spec.aggregator, LossWeighted):
        hooks.append(LossWeights(spec.aggregator, replicas, transport))
    objective = spec.clients.objective
    if objective is not None:
        objective.check_names(replicas[0].params)
        if objective.sends:
            hooks.append(ControlVariates(objective, replicas, anchors, transport))
        else:
            hooks.append(LocalObjective(objective, replicas, anchors))
    if spec.clients.moments is not None:
        hooks.append(MomentAverage(spec.clients.moments, replicas, transport))
    if pruning is not None:
        hooks.append(pruning)
    if type(spec.codec).private is not Codec.private:
        hooks.append(PrivateTensors(spec, replicas, transport))
    if spec.clients.fresh_inner:
        hooks.append(FreshInner(replicas))
    if lora is not None and lora.in_use:
        hooks.append(lora)
    return hooks
