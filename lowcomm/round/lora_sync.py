"""What a LoRA rule needs of a LocalSGD beside its Delta: ranks and scales per island, private factors, base weights.

`check_lora` refuses combinations before anything starts; `loosen` and `install` prepare models and replicas; `hold` and
`settle` stand around the moment when a commit writes the global weights into the replicas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from lowcomm.aggregate.base import Aggregator, Combined
from lowcomm.aggregate.lora.adapter import Product
from lowcomm.aggregate.lora.hetlora import HetLoRA
from lowcomm.aggregate.lora.rolora import RoLoRA
from lowcomm.aggregate.lora.rule import FACTOR, LoraRule, pairs_of
from lowcomm.aggregate.lora.senders import SenderMean
from lowcomm.codec.base import Codec
from lowcomm.codec.error_feedback import ErrorFeedback
from lowcomm.codec.in_turn import InTurn
from lowcomm.codec.parts import Parts
from lowcomm.local import Objective, RankDecay
from lowcomm.model import LoRA, Tuning
from lowcomm.outer import SGD, HeavyBall, Nesterov, Outer
from lowcomm.round.digest import Digest, digest
from lowcomm.round.shrinking import first_ranks, rank_now
from lowcomm.schedule import Schedule
from lowcomm.types import ConfigError, DivergenceError

if TYPE_CHECKING:
    from lowcomm.sync import LocalSGD


def check_lora(
    aggregator: Aggregator, codec: Codec, outer: Outer, schedule: Schedule, objective: Objective | None = None
) -> None:
    """Raise ConfigError for parts that a LoRA rule, or a codec that sends parts, can't work with."""
    inner = codec.codec if isinstance(codec, ErrorFeedback) else codec
    name = type(aggregator).__name__
    if isinstance(inner, Parts):
        fits = isinstance(aggregator, RoLoRA if isinstance(inner, InTurn) else SenderMean)
        wanted = "RoLoRA" if isinstance(inner, InTurn) else "SenderMean, FedSA or FedRand"
        _refuse(not fits, "sync.aggregator", name, f"{type(inner).__name__} sends some tensors only", f"use {wanted}")
        feeds = codec is not inner and not isinstance(inner, InTurn)
        _refuse(
            feeds, "sync.codec", "ErrorFeedback", f"{type(inner).__name__} keeps tensors back on purpose", "unwrap it"
        )
    if not isinstance(aggregator, LoraRule):
        return
    _refuse(schedule.overlaps, "sync.schedule", type(schedule).__name__, f"{name} makes new factors", "use EveryH")
    held = codec.holds_back
    _refuse(
        held, "sync.codec", type(codec).__name__, f"{name} needs what an island trained as a whole", "ErrorFeedback"
    )
    if isinstance(aggregator, HetLoRA) and aggregator.gamma is not None and isinstance(objective, RankDecay):
        mine, other = aggregator.gamma, objective.gamma
        _refuse(mine != other, "sync.aggregator.gamma", mine, f"RankDecay's is {other}: other rows decay", "equal ones")
    keeps = aggregator.shrinks and bool(codec.init({"probe": torch.zeros(8, 8)}))
    why = f"{name} with a gamma sends fewer rows as ranks shrink, which its state does not fit"
    _refuse(keeps, "sync.codec", type(codec).__name__, why, "use Fp32() or Int8(exchange='gather') as it is")
    parts = schedule.fragments
    _refuse(parts != 1, "sync.schedule.fragments", parts, f"{name} needs both factors of a layer at once", "use EveryH")
    if aggregator.regauges or aggregator.moves_base:
        plain = isinstance(outer, SGD | Nesterov | HeavyBall) and outer.lr == 1 and getattr(outer, "momentum", 0.0) == 0
        why = f"{name} makes new factors, which a momentum or another rate would not arrive at"
        _refuse(not plain, "sync.outer", outer, why, "use SGD(lr=1.0)")
    if aggregator.regauges:
        stale = isinstance(codec, ErrorFeedback)
        _refuse(stale, "sync.codec", "ErrorFeedback", f"{name} changes the factors' basis every round", "unwrap it")


def check_tuning(aggregator: Aggregator, tuning: Tuning, islands: int) -> None:
    """Raise ConfigError for a LoRA rule whose rank, scale, factors or islands are not those of the model's adapters."""
    if not isinstance(aggregator, LoraRule):
        return
    name = type(aggregator).__name__
    if not isinstance(tuning, LoRA):
        raise ConfigError(f"model.tuning = {tuning} is not allowed: {name} aggregates LoRA factors. Fix: use LoRA(...)")
    for field in ("rank", "alpha", "rslora"):
        mine, theirs = getattr(aggregator, field), getattr(tuning, field)
        _refuse(
            mine != theirs, f"sync.aggregator.{field}", mine, f"model.tuning.{field} is {theirs}", "make them equal"
        )
    trained = {"AB": frozenset("AB"), "B": frozenset("B"), "core": frozenset[str]()}[tuning.train]
    wanted = {"AB": "AB", "B": "B", "": "core"}["".join(sorted(aggregator.factors))]
    _refuse(trained != aggregator.factors, "model.tuning.train", tuning.train, f"{name} trains {wanted}", f"{wanted!r}")
    magnitudes = aggregator.moves_base and tuning.dora
    _refuse(magnitudes, "model.tuning.dora", True, f"{name} changes base weights, whose norms DoRA divides by", "False")
    _check_ranks(aggregator, islands)


def _check_ranks(rule: LoraRule, islands: int) -> None:
    if rule.ranks is not None and len(rule.ranks) != islands:
        raise ConfigError(
            f"sync.aggregator.ranks has {len(rule.ranks)} ranks, there are {islands} islands. "
            "Fix: give one rank per island"
        )


def _refuse(wrong: bool, field: str, value: object, why: str, fix: str) -> None:
    if wrong:
        raise ConfigError(f"{field} = {value} is not allowed: {why}. Fix: {fix}")


def loosen(models: Sequence[nn.Module], aggregator: Aggregator) -> None:
    """Make the base weights that a rule changes buffers, so that checkpoints hold them: frozen ones are not saved.

    Raises ConfigError for one that another module shares: what one layer learnt would change the other.
    """
    if not (isinstance(aggregator, LoraRule) and aggregator.moves_base):
        return
    rule = type(aggregator).__name__
    for model in models:
        users: dict[int, int] = {}
        for _, p in model.named_parameters(remove_duplicate=False):
            users[id(p)] = users.get(id(p), 0) + 1
        for name, module in tuned_modules(model):
            base = cast("nn.Module", module.base_layer)
            weight = base.weight
            if not isinstance(weight, nn.Parameter):
                continue
            why = f"{rule} adds to the weights of {name}, which are quantised"
            _refuse(not weight.is_floating_point(), "sync.aggregator", rule, why, "use FedIT or FlexLoRA")
            if users[id(weight)] > 1:
                raise ConfigError(
                    f"model.tuning tunes {name}, whose weight another module shares (tied): {rule} "
                    "would change both. Fix: leave it out of the target modules, or use FlexLoRA"
                )
            del base._parameters["weight"]
            base.register_buffer("weight", weight.detach(), persistent=False)


def tuned_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that carry LoRA factors, by name."""
    return [(n, m) for n, m in model.named_modules() if hasattr(m, "base_layer") and hasattr(m, "lora_A")]


def install(sync: LocalSGD) -> None:
    """Check the adapters against the rule, give each replica its rank and scale, let resting factors rest."""
    rule, sync.ranks = sync.aggregator, first_ranks(sync.aggregator, sync.transport.islands)
    if isinstance(rule, LoraRule):
        mesh = sync.replicas[0].part.mesh
        alone = mesh is None or mesh.size == 1
        _refuse(
            not alone, "sync.aggregator", type(rule).__name__, "an island's ranks hold parts of factors", "use Mean"
        )
        _check_adapters(sync, rule)
        if rule.ranks is not None:
            for replica, island in zip(sync.replicas, sync.transport.local, strict=True):
                set_scale(replica.model, rule.scale_of(rule.rank_of(island)))
            for index in range(len(sync.fragments)):
                settle(sync, index, None, [{} for _ in sync.replicas])
        if rule.moves_base:
            _compare_bases(sync)
    names = sync.replicas[0].params
    if any(not rule.trains(name, i) for name in names for i in (0, 1)):
        for replica in sync.replicas:
            replica.inner.register_step_pre_hook(lambda *_, r=replica: rest(sync, r.params))


def rest(sync: LocalSGD, params: Mapping[str, Tensor]) -> None:
    """Drop the gradients of what is not trained in this round: optimizers then leave it as it is."""
    for name, p in params.items():
        if not sync.aggregator.trains(name, sync.round):
            p.grad = None


def set_scale(model: nn.Module, scale: float) -> None:
    """Set the scale of every LoRA layer."""
    for _, module in tuned_modules(model):
        scaling = cast("dict[str, float]", module.scaling)
        for adapter in scaling:
            scaling[adapter] = scale


def _check_adapters(sync: LocalSGD, rule: LoraRule) -> None:
    name, model = type(rule).__name__, sync.replicas[0].model
    _check_ranks(rule, sync.transport.islands)
    tuned = tuned_modules(model)
    if not tuned:
        raise ConfigError(f"{name} found no LoRA layer in the model. Fix: set model.tuning to LoRA(...)")
    trained = {match["factor"] for n in sync.replicas[0].params if (match := FACTOR.fullmatch(n))}
    if trained != rule.factors:
        wanted, found = "".join(sorted(rule.factors)) or "neither", "".join(sorted(trained)) or "neither"
        raise ConfigError(
            f"{name} trains {wanted} of A and B, the model's trainable factors are {found}. "
            "Fix: set model.tuning.train to match (FFA: 'B', FedSB: 'core', else 'AB')"
        )
    if rule.moves_base and any(".lora_magnitude_vector." in n for n in sync.replicas[0].params):
        raise ConfigError(
            f"{name} changes base weights, whose norms DoRA divides by. Fix: set model.tuning.dora to False"
        )
    if rule.needs == "each":
        for fragment in sync.fragments:
            pairs_of(fragment.names)
    for n, p in sync.replicas[0].params.items():
        match = FACTOR.fullmatch(n)
        rank = None if match is None else p.shape[0 if match["factor"] == "A" else 1]
        if rank not in (None, rule.rank):
            raise ConfigError(
                f"sync.aggregator.rank = {rule.rank} is not allowed: {n} has rank {rank}. Fix: set it to that"
            )
    for layer, module in tuned:
        for scale in cast("dict[str, float]", module.scaling).values():
            if abs(scale - rule.scale) > 1e-9 * rule.scale:
                raise ConfigError(
                    f"sync.aggregator.alpha = {rule.alpha} (rslora={rule.rslora}) gives the scale {rule.scale:g}, but "
                    f"{layer} has {scale:g}. Fix: take alpha, rank and rslora from model.tuning"
                )


def _compare_bases(sync: LocalSGD) -> None:
    """Frozen parameters are compared in the handshake; these are buffers."""
    rows = [torch.frombuffer(bytearray(_base_digest(r.model)), dtype=torch.uint8) for r in sync.replicas]
    table = sync.transport.gather(rows)
    if bool((table != table[0]).any()):
        raise DivergenceError("islands disagree on the base weights under the adapters. Start all from the same model.")


def _base_digest(model: nn.Module) -> bytes:
    hashed = Digest()
    for _, module in tuned_modules(model):
        hashed.update(cast("Tensor", cast("nn.Module", module.base_layer).weight))
    return hashed.value()


def hold(sync: LocalSGD, index: int, dropped: Sequence[int]) -> list[dict[str, Tensor]]:
    """By local island: copies of what it keeps to itself in the round that comes; nothing for one that was left out."""
    fragment = sync.fragments[index]
    coming = sync.round_of(index, ahead=1)
    like = fragment.views(fragment.weights)
    held: list[dict[str, Tensor]] = []
    for replica, island in zip(sync.replicas, sync.transport.local, strict=True):
        own = frozenset() if island in dropped else sync.codec.private(like, dataclasses.replace(coming, island=island))
        held.append({name: replica.held[name].detach().clone() for name in fragment.names if name in own})
    return held


@torch.no_grad()
def settle(sync: LocalSGD, index: int, combined: Combined | None, held: Sequence[dict[str, Tensor]]) -> bytes:
    """After the global weights were written: ranks, scales, private values, base weights. Digest of what was added."""
    rule, fragment = sync.aggregator, sync.fragments[index]
    for replica, island, own in zip(sync.replicas, sync.transport.local, held, strict=True):
        if isinstance(rule, LoraRule) and (rule.ranks is not None or rule.shrinks):
            for name, view in fragment.views(fragment.weights).items():
                replica.held[name].copy_(rule.local(name, view, island, rank_now(sync, island)))
        for name, value in own.items():
            replica.held[name].copy_(value)
        if isinstance(rule, LoraRule) and rule.regauges and combined is not None:
            replica.inner.state.clear()  # its moments belong to factors in another basis
    hashed = Digest()
    for layer, (b, a) in (combined.residuals if combined is not None else {}).items():
        hashed.update(b)
        hashed.update(a)
        add_to_base([r.model.get_submodule(layer) for r in sync.replicas], Product(b=b, a=a))
    return hashed.value()


@torch.no_grad()
def add_to_base(modules: Sequence[nn.Module], product: Product) -> None:
    """Each module's base weight += the product, in the orientation in which the layer keeps it."""
    change: Tensor | None = None
    for module in modules:
        base = cast("nn.Module", module.base_layer)
        weight = cast("Tensor", base.weight)
        if change is None:
            transposed = bool(getattr(module, "fan_in_fan_out", False)) or isinstance(base, nn.Embedding)
            change = product.matrix(transposed=transposed)
        weight.add_(change.to(weight.device, weight.dtype))


@contextmanager
def at_server_scale(sync: LocalSGD) -> Iterator[None]:
    """Within, the first replica's adapters have the global factors' scale."""
    rule = sync.aggregator
    if not isinstance(rule, LoraRule) or rule.ranks is None:
        yield
        return
    set_scale(sync.replicas[0].model, rule.scale)
    try:
        yield
    finally:
        set_scale(sync.replicas[0].model, rule.scale_of(rule.rank_of(sync.transport.local[0])))


def mixed(first: bytes, second: bytes) -> bytes:
    """One digest of two."""
    return digest(torch.frombuffer(bytearray(first + second), dtype=torch.uint8))
