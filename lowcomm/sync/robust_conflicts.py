"""What does not go with rules that see each Delta (Krum, medians): part of the table in `compatibility.py`.

Whatever else islands average would be a plain mean, which a faulty island steers as it likes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lowcomm.aggregate.lora.rule import pairs_of
from lowcomm.aggregate.loss_weighted import LossWeighted
from lowcomm.aggregate.robust import RobustRule
from lowcomm.model import LoRA, Tuning
from lowcomm.sampling import FixedSize
from lowcomm.state.conflict import Conflict
from lowcomm.state.spec import SyncSpec


def robust_conflicts(spec: SyncSpec) -> Iterator[Conflict]:
    """Parts of a spec, and of rules that ask for losses."""
    yield from _with_losses(spec)
    rule, schedule, clients = spec.aggregator, spec.schedule, spec.clients
    if not isinstance(rule, RobustRule):
        return
    name, other = type(rule).__name__, f"sync.aggregator = {type(rule).__name__}"
    if schedule(1, spec.every).average_gradients:
        why = f"averaged gradients are a plain mean over all islands, and {name} sees none of them"
        yield Conflict("sync.schedule", type(schedule).__name__, other, why, "use EveryH")
    if clients.objective is not None and clients.objective.sends:
        why = "its control variates are a plain mean over all islands"
        yield Conflict("sync.objective", type(clients.objective).__name__, other, why, "use FedProx")
    sampling = clients.sampling
    if sampling is None or rule.fewest <= 1:
        return
    if not isinstance(sampling, FixedSize):
        why = f"a round may have any number of islands, and {name} needs {rule.fewest}"
        yield Conflict("sync.sampling", type(sampling).__name__, other, why, f"use FixedSize(count={rule.fewest})")
    elif sampling.count < rule.fewest:
        why = f"{name} needs {rule.fewest} islands in a round"
        yield Conflict("sync.sampling.count", sampling.count, other, why, f"{rule.fewest} or more")


def _with_losses(spec: SyncSpec) -> Iterator[Conflict]:
    """What rules can't do that weigh by islands' losses, or judge by those of a proxy set."""
    rule, schedule = spec.aggregator, spec.schedule
    weighs = isinstance(rule, LossWeighted)
    if not (weighs or rule.proxies):
        return
    name, other = type(rule).__name__, f"sync.aggregator = {type(rule).__name__}"
    if spec.exchange is not None:
        why = f"{name} needs the losses of all islands in one round"
        yield Conflict("sync.exchange", type(spec.exchange).__name__, other, why, "leave one of them out")
    plain = schedule.fragments == 1 and not schedule.overlaps
    if not plain or schedule(1, spec.every).average_gradients:
        why = f"{name} needs the whole model while training waits"
        yield Conflict("sync.schedule", type(schedule).__name__, other, why, "use EveryH")
    hides = "sync.secure" if spec.clients.secure is not None else "sync.privacy" if spec.noises_deltas else None
    if weighs and hides is not None:
        why = "each island says its loss in the open"
        yield Conflict("sync.aggregator", name, hides, why, "use Mean")


def with_model(spec: SyncSpec, ranks: int, averaged: Sequence[str], trained: Sequence[str]) -> Iterator[Conflict]:
    """Buffers that islands average, and trained parameters (names) of a model that has adapters."""
    rule = spec.aggregator
    if ranks > 1 and (isinstance(rule, LossWeighted) or rule.proxies):
        why = f"{type(rule).__name__} needs an island's whole loss, and its ranks have parts of it"
        yield Conflict("island.size", ranks, f"sync.aggregator = {type(rule).__name__}", why, "islands of one rank")
    if not isinstance(rule, RobustRule):
        return
    other = f"sync.aggregator = {type(rule).__name__}"
    if averaged:
        why = f"{', '.join(averaged)} would be a plain mean over all islands"
        yield Conflict("buffers", None, other, why, "keep them local, buffers={'*': 'local'}")
    pairs = pairs_of(list(trained))
    if not pairs:
        return
    factors = {name for pair in pairs for name in (pair.a, pair.b)}
    rest = [n for n in trained if n not in factors]
    if not rule.on_factors:
        yield _on_factors(spec, "parameters", pairs[0].a)
    if rest:
        why = f"{type(rule).__name__} measures adapters by their dW, which weights beside them have no scale to"
        yield Conflict("parameters", rest[0], other, why, "train adapters only, or all weights")
    if ranks > 1:
        why = "an island's ranks hold parts of factors"
        yield Conflict("island.size", ranks, other, why, "islands of one rank")
    if spec.schedule.fragments != 1:
        why = "both factors of a layer are needed at once"
        yield Conflict("sync.schedule.fragments", spec.schedule.fragments, other, why, "use EveryH")


def with_tuning(spec: SyncSpec, tuning: Tuning) -> Iterator[Conflict]:
    """A recipe's way of tuning."""
    rule = spec.aggregator
    if isinstance(rule, RobustRule) and isinstance(tuning, LoRA) and not rule.on_factors:
        yield _on_factors(spec, "model.tuning", type(tuning).__name__)


def _on_factors(spec: SyncSpec, field: str, value: str) -> Conflict:
    name = type(spec.aggregator).__name__
    why = "equal products B A may have unlike factors, so that their coordinates say nothing"
    fix = "use a rule that picks or weighs islands (Krum, CentredClipping), or FedIT"
    return Conflict(field, value, f"sync.aggregator = {name}", why, fix)
