"""The table of parts that do not go together, with the fix for each pair.

`conflicts` lists those of a spec in the order in which they are told; `check_spec` refuses the first, before anything
starts, for `lowcomm train` and a loop of one's own alike. Ranges of single settings are checked by each part itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lowcomm.aggregate import Mean
from lowcomm.aggregate.lora.hetlora import HetLoRA
from lowcomm.aggregate.lora.rolora import RoLoRA
from lowcomm.aggregate.lora.rule import LoraRule
from lowcomm.aggregate.lora.senders import SenderMean
from lowcomm.codec import Codec, Fp32, Rqm
from lowcomm.codec.error_feedback import ErrorFeedback
from lowcomm.codec.in_turn import InTurn
from lowcomm.codec.parts import Parts
from lowcomm.exchange.buffered import Buffered
from lowcomm.local import RankDecay
from lowcomm.model import LoRA, Tuning
from lowcomm.outer import SGD, HeavyBall, Nesterov
from lowcomm.schedule import EveryH, Growing, LateMerge
from lowcomm.state.conflict import Conflict, refuse
from lowcomm.state.deadlines import check_late
from lowcomm.state.norms import check_bound
from lowcomm.state.spec import SyncSpec
from lowcomm.sync import moment_conflicts
from lowcomm.sync.attack_conflicts import attack_conflicts, check_attackers
from lowcomm.sync.buffer_conflicts import with_buffers
from lowcomm.sync.buffered_conflicts import of_buffered
from lowcomm.sync.fresh_conflicts import fresh_conflicts
from lowcomm.sync.neighbours import keeps_state, own_anchors, with_own_anchors
from lowcomm.sync.robust_conflicts import robust_conflicts, with_model, with_tuning
from lowcomm.typecheck import check_types
from lowcomm.types import ConfigError, require


def check_spec(spec: SyncSpec, steps: int | None = None) -> None:
    """Raise ConfigError for a setting out of range, or for parts that do not go together.

    steps: inner steps of the run; None: open-ended.
    """
    check_types(spec)
    require(spec.every >= 1, "sync.every", spec.every, "1 or more", "32 suits short runs, 500 long ones")
    require(0 < spec.quorum <= 1, "sync.quorum", spec.quorum, "0 < quorum <= 1", "0.5 needs half of the islands")
    for part in (spec.outer, spec.codec, spec.aggregator, spec.privacy, spec.clients.secure, spec.clients.objective):
        if part is not None:
            part.check()
    spec.schedule.check(spec.every, steps)
    check_bound(spec.norm_bound, "sync.")
    check_late(spec.on_late, spec.late_tolerance_s, "sync.")
    refuse(conflicts(spec))


def check_islands(
    spec: SyncSpec, islands: int, ranks: int, averaged: Sequence[str], trained: Sequence[str] = ()
) -> None:
    """Raise ConfigError for what does not fit the islands: number, ranks, averaged buffers, trained parameters."""
    clients = spec.clients
    if clients.sampling is not None:
        clients.sampling.check(islands)
    steps = clients.local_steps
    if steps is not None:
        require(len(steps) == islands, "sync.local_steps", steps, f"{islands} numbers, one per island", "give as many")
        ok = all(1 <= n <= spec.every for n in steps)
        require(
            ok, "sync.local_steps", steps, f"1 to sync.every ({spec.every}) each", "lower them, or raise sync.every"
        )
    spec.aggregator.check_islands(islands)
    if spec.exchange is not None:
        spec.exchange.check(islands)
    refuse(with_own_anchors(spec, ranks, averaged))
    refuse(_with_ranks(spec, ranks))
    refuse(moment_conflicts.with_ranks(spec, ranks))
    refuse(with_buffers(spec, averaged))
    refuse(with_model(spec, ranks, averaged, trained))
    check_attackers(spec, islands, ranks)


def conflicts(spec: SyncSpec) -> Iterator[Conflict]:
    """Every pair of parts of a spec that does not go together."""
    yield from _codec(spec)
    yield from _lora(spec)
    yield from _privacy(spec)
    yield from _secure(spec)
    yield from _clients(spec)
    yield from _exchange(spec)
    yield from robust_conflicts(spec)
    yield from own_anchors(spec)
    yield from attack_conflicts(spec)
    yield from moment_conflicts.moment_conflicts(spec)
    yield from fresh_conflicts(spec)


def _name(part: object) -> str:
    return type(part).__name__


def _codec(spec: SyncSpec) -> Iterator[Conflict]:
    codec, rule = spec.codec, spec.aggregator
    if rule.needs == "each" and codec.sums_on_the_way:
        field = "sync.codec.codec.exchange" if isinstance(codec, ErrorFeedback) else "sync.codec.exchange"
        why = f"{_name(rule)} must see each contribution, and {_name(codec)} sums them on the way"
        yield Conflict(field, "'reduce'", "", why, f"{field} = 'gather', or the aggregator Mean")
    inner, name = codec.bare, _name(rule)
    if isinstance(inner, Parts):
        turns = isinstance(inner, InTurn)
        if not isinstance(rule, RoLoRA if turns else SenderMean):
            wanted = "use RoLoRA" if turns else "use SenderMean, FedSA or FedRand"
            yield Conflict("sync.aggregator", name, "", f"{_name(inner)} sends some tensors only", wanted)
        if codec is not inner and not turns:
            why = f"{_name(inner)} keeps tensors back on purpose"
            yield Conflict("sync.codec", "ErrorFeedback", "", why, "unwrap it")


def _lora(spec: SyncSpec) -> Iterator[Conflict]:
    rule, codec, schedule = spec.aggregator, spec.codec, spec.schedule
    if not isinstance(rule, LoraRule):
        return
    name, objective = _name(rule), spec.clients.objective
    if schedule.overlaps:
        yield Conflict("sync.schedule", _name(schedule), "", f"{name} makes new factors", "use EveryH")
    if codec.holds_back:
        why = f"{name} needs what an island trained as a whole"
        yield Conflict("sync.codec", _name(codec), "", why, "ErrorFeedback")
    gamma = rule.gamma if isinstance(rule, HetLoRA) else None
    if gamma is not None and isinstance(objective, RankDecay) and gamma != objective.gamma:
        why = f"RankDecay's is {objective.gamma}: other rows decay"
        yield Conflict("sync.aggregator.gamma", gamma, "", why, "equal ones")
    if rule.shrinks and keeps_state(codec):
        why = f"{name} with a gamma sends fewer rows as ranks shrink, which its state does not fit"
        yield Conflict("sync.codec", _name(codec), "", why, "use Fp32() or Int8(exchange='gather') as it is")
    if schedule.fragments != 1:
        why = f"{name} needs both factors of a layer at once"
        yield Conflict("sync.schedule.fragments", schedule.fragments, "", why, "use EveryH")
    outer = spec.outer
    plain = isinstance(outer, SGD | Nesterov | HeavyBall) and outer.lr == 1 and getattr(outer, "momentum", 0.0) == 0
    if (rule.regauges or rule.moves_base) and not plain:
        why = f"{name} makes new factors, which a momentum or another rate would not arrive at"
        yield Conflict("sync.outer", outer, "", why, "use SGD(lr=1.0)")
    if rule.regauges and isinstance(codec, ErrorFeedback):
        why = f"{name} changes the factors' basis every round"
        yield Conflict("sync.codec", "ErrorFeedback", "", why, "unwrap it")


def _privacy(spec: SyncSpec) -> Iterator[Conflict]:
    mechanism, rule, codec = spec.privacy, spec.aggregator, spec.codec
    if mechanism is None:
        return
    other = f"sync.privacy = {_name(mechanism)}"
    if isinstance(codec.bare, Rqm):
        yield Conflict("sync.codec", "Rqm", other, "one is enough", "use Fp32")
    if mechanism.level == "example":
        return
    if rule.needs != "sum":
        why = "it looks at single contributions, which carry a share of the noise only"
        yield Conflict("sync.aggregator", _name(rule), other, why, "use Mean or FFA with by='uniform'")
    if not rule.bounded:
        why = "'uniform', as an island of large weight would add more than the noise hides"
        by = repr(getattr(rule, "by", _name(rule)))
        yield Conflict("sync.aggregator.by", by, "", why, "pass --sync.aggregator.by uniform")
    if codec.holds_back:
        why = "its last merge sends what was kept back, clipped as if it were one round's"
        yield Conflict("sync.codec", _name(codec), other, why, "use ErrorFeedback, which keeps only noised values")
    sampling = spec.clients.sampling
    if sampling is not None and mechanism.learns:
        why = "its clip is learnt from all islands"
        yield Conflict("sync.sampling", _name(sampling), other, why, "use ClientGaussian")
    if not isinstance(spec.schedule, EveryH | Growing):
        why = "averaged gradients carry no noise, and exchanges in flight are releases that a budget can't stop"
        yield Conflict("sync.schedule", _name(spec.schedule), other, why, "use EveryH")


def _secure(spec: SyncSpec) -> Iterator[Conflict]:
    if spec.clients.secure is None:
        return
    if spec.aggregator.needs != "sum":
        why = "it must see each contribution, and nobody can read one"
        fix = "use Mean, FFA or RoLoRA with a codec that sends all, or leave sync.secure out"
        yield Conflict("sync.aggregator", _name(spec.aggregator), "sync.secure", why, fix)
    if not isinstance(spec.codec, Fp32):
        why = "masked payloads are added as integers before anybody decodes them"
        fix = "use Fp32; sync.secure sends sync.secure.bits each"
        yield Conflict("sync.codec", _name(spec.codec), "sync.secure", why, fix)
    if not isinstance(spec.schedule, EveryH | Growing):
        why = "averaged gradients are not masked, and keys are exchanged while training waits"
        yield Conflict("sync.schedule", _name(spec.schedule), "sync.secure", why, "use EveryH")


def _clients(spec: SyncSpec) -> Iterator[Conflict]:
    clients, codec, schedule = spec.clients, spec.codec, _name(spec.schedule)
    if clients.sampling is not None and codec.sums_on_the_way:
        why = "islands that were not sampled would send as much as the others"
        fix = "sync.codec.exchange = 'gather', or Fp32"
        yield Conflict("sync.codec.exchange", "'reduce'", "sync.sampling", why, fix)
    if clients.sampling is not None and codec.holds_back:
        why = "what an island keeps back would be overwritten in rounds without it"
        yield Conflict("sync.codec", _name(codec), "sync.sampling", why, "use ErrorFeedback")
    if clients.rests_somewhen() and not isinstance(spec.schedule, EveryH):
        other = "sync.sampling" if clients.sampling is not None else "sync.local_steps"
        why = "rounds of islands that rest have a fixed length"
        yield Conflict("sync.schedule", schedule, other, why, "use EveryH")
    objective, rule = clients.objective, spec.aggregator
    if objective is None:
        return
    other = f"sync.objective = {_name(objective)}"
    if not isinstance(spec.schedule, EveryH | Growing):
        why = "it pulls towards the global weights of one round"
        yield Conflict("sync.schedule", schedule, other, why, "use EveryH")
    if objective.sends and (spec.privacy is not None or clients.secure is not None):
        why = "its control variates would leave the island without noise or masks"
        yield Conflict("sync.objective", _name(objective), "sync.privacy or sync.secure", why, "use FedProx")
    own_ranks = isinstance(rule, LoraRule) and (rule.ranks is not None or rule.shrinks)
    own_factors = type(codec).private is not Codec.private
    if objective.anchored and (own_ranks or own_factors):
        field, value = ("sync.aggregator.ranks", None) if own_ranks else ("sync.codec", _name(codec))
        why = "clients do not begin a round with the global factors"
        yield Conflict(field, value, other, why, "use equal ranks and codecs that send all")


def _exchange(spec: SyncSpec) -> Iterator[Conflict]:
    """What needs all islands in one round, where the exchange is another than lockstep."""
    choice, clients, rule = spec.exchange, spec.clients, spec.aggregator
    if choice is None or choice.whole_islands:  # a store's are in `store_conflicts`
        return
    other, fix = f"sync.exchange = {_name(choice)}", "leave one of them out"
    if clients.secure is not None:
        yield Conflict("sync.secure", None, other, "masks need every island in one sum", fix)
    if spec.noises_deltas:
        yield Conflict("sync.privacy", None, other, "its noise is shared by the islands of one sum", fix)
    if clients.sampling is not None:
        yield Conflict("sync.sampling", None, other, "no island hears of all others", fix)
    if clients.objective is not None and clients.objective.sends:
        why = "control variates are a second exchange of all islands in a round"
        yield Conflict("sync.objective", _name(clients.objective), other, why, "use FedProx")
    if not isinstance(spec.schedule, EveryH | Growing | LateMerge):
        yield Conflict("sync.schedule", _name(spec.schedule), other, "it exchanges whole rounds", "use EveryH")
    if not isinstance(rule, Mean):
        yield Conflict("sync.aggregator", _name(rule), other, "it weighs contributions itself", "use Mean")
    if spec.codec.holds_back:
        why = "a run has no last merge of all islands"
        yield Conflict("sync.codec", _name(spec.codec), other, why, "use ErrorFeedback")
    if isinstance(choice, Buffered):
        yield from of_buffered(spec)


def _with_ranks(spec: SyncSpec, ranks: int) -> Iterator[Conflict]:
    """What needs islands of one rank."""
    if ranks == 1:
        return
    if isinstance(spec.exchange, Buffered):
        why = "what an island contributes is whole"
        yield Conflict("island.size", ranks, "sync.exchange = Buffered", why, "islands of one rank")
    if spec.noises_deltas:
        why = "each rank would clip its part by itself"
        yield Conflict("island.size", ranks, "sync.privacy", why, "islands of one rank")
    if spec.clients.secure is not None:
        why = "who drops is decided per island"
        yield Conflict("island.size", ranks, "sync.secure", why, "islands of one rank")
    if isinstance(spec.aggregator, LoraRule):
        why = "an island's ranks hold parts of factors"
        yield Conflict("sync.aggregator", _name(spec.aggregator), "", why, "use Mean")
    if spec.clients.objective is not None:
        other = f"sync.objective = {_name(spec.clients.objective)}"
        yield Conflict("island.size", ranks, other, "its islands have one rank", "use island.size 1")


def check_tuning(spec: SyncSpec, tuning: Tuning) -> None:
    """Raise ConfigError for a rule that does not fit adapters, or whose rank, scale or factors are not theirs."""
    refuse(with_tuning(spec, tuning))
    rule = spec.aggregator
    if isinstance(rule, LoraRule):
        if not isinstance(tuning, LoRA):
            what = f"{_name(rule)} aggregates LoRA factors"
            raise ConfigError(f"model.tuning = {tuning} is not allowed: {what}. Fix: use LoRA(...)")
        refuse(_tuning(rule, tuning))


def _tuning(rule: LoraRule, tuning: LoRA) -> Iterator[Conflict]:
    name = _name(rule)
    for field in ("rank", "alpha", "rslora"):
        mine, theirs = getattr(rule, field), getattr(tuning, field)
        if mine != theirs:
            yield Conflict(f"sync.aggregator.{field}", mine, "", f"model.tuning.{field} is {theirs}", "make them equal")
    trained = {"AB": frozenset("AB"), "B": frozenset("B"), "core": frozenset[str]()}[tuning.train]
    wanted = {"AB": "AB", "B": "B", "": "core"}["".join(sorted(rule.factors))]
    if trained != rule.factors:
        yield Conflict("model.tuning.train", tuning.train, "", f"{name} trains {wanted}", f"{wanted!r}")
    if rule.moves_base and tuning.dora:
        why = f"{name} changes base weights, whose norms DoRA divides by"
        yield Conflict("model.tuning.dora", True, "", why, "False")
