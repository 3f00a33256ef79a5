"""A LoRA rule at work beside its Delta: ranks and scales per island, base weights, moments in a new basis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from lowcomm.aggregate import Aggregator
from lowcomm.aggregate.lora.adapter import Product
from lowcomm.aggregate.lora.rule import FACTOR, LoraRule, pairs_of
from lowcomm.hooks.base import Hook
from lowcomm.hooks.rank_pruning import RankPruning
from lowcomm.state.anchor import Anchor
from lowcomm.state.digest import Digest
from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.state.replica import Replica
from lowcomm.transport import Transport
from lowcomm.types import ConfigError, DivergenceError


class LoraAdapters(Hook):
    """Gives each replica its rows and scale of new global factors, and adds what a round puts into base weights.

    pruning: the hook that keeps the ranks where they shrink. Raises ConfigError for adapters that are not the rule's,
    DivergenceError for islands whose base weights differ.
    """

    def __init__(
        self,
        rule: LoraRule,
        replicas: Sequence[Replica],
        anchors: list[list[Anchor]],
        transport: Transport,
        pruning: RankPruning | None,
    ) -> None:
        self.rule, self.replicas, self.transport, self.pruning = rule, replicas, transport, pruning
        check_adapters(rule, replicas[0], anchors, transport.islands)
        if rule.ranks is not None:
            for replica, island in zip(replicas, transport.local, strict=True):
                set_scale(replica.model, rule.scale_of(rule.rank_of(island)))
            for shared in anchors:
                self._cut(shared[0].named)
        if rule.moves_base:
            _compare_bases(replicas, transport)

    @property
    def in_use(self) -> bool:
        """Whether a round has anything for it to do."""
        rule = self.rule
        return rule.ranks is not None or rule.shrinks or rule.regauges or rule.moves_base

    @torch.no_grad()
    def _cut(self, named: Mapping[str, Tensor]) -> None:
        """Each replica's factors <- its rank of the global ones, at its scale."""
        for replica, island in zip(self.replicas, self.transport.local, strict=True):
            rank = self.pruning.ranks[island] if self.pruning is not None else None
            for name, view in named.items():
                replica.held[name].copy_(self.rule.local(name, view, island, rank))

    @torch.no_grad()
    def after_write(self, out: Outgoing, arrived: Arrived, change: object) -> bytes | None:
        if self.rule.ranks is not None or self.rule.shrinks:
            self._cut(out.anchors[0].named)
        if arrived.aggregate is None:
            return None
        if self.rule.regauges:
            for replica in self.replicas:
                replica.inner.state.clear()  # its moments belong to factors in another basis
        hashed = Digest()
        for layer, (b, a) in arrived.aggregate.residuals.items():
            hashed.update(b)
            hashed.update(a)
            add_to_base([r.model.get_submodule(layer) for r in self.replicas], Product(b=b, a=a))
        return hashed.value() if arrived.aggregate.residuals else None


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
            if not weight.is_floating_point():
                why = f"{rule} adds to the weights of {name}, which are quantised"
                raise ConfigError(f"sync.aggregator = {rule} is not allowed: {why}. Fix: use FedIT or FlexLoRA")
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


def rest_untrained(aggregator: Aggregator, replicas: Sequence[Replica], round_index: Callable[[], int]) -> None:
    """Drop the gradients of what is not trained in a round before each inner step: optimizers then leave it as it is.

    round_index: the round that goes on. A rule that always trains everything costs nothing.
    """
    if all(aggregator.trains(name, i) for name in replicas[0].params for i in (0, 1)):
        return

    def drop(params: Mapping[str, Tensor]) -> None:
        for name, p in params.items():
            if not aggregator.trains(name, round_index()):
                p.grad = None

    for replica in replicas:
        replica.inner.register_step_pre_hook(lambda *_, r=replica: drop(r.params))


def set_scale(model: nn.Module, scale: float) -> None:
    """Set the scale of every LoRA layer."""
    for _, module in tuned_modules(model):
        scaling = cast("dict[str, float]", module.scaling)
        for adapter in scaling:
            scaling[adapter] = scale


def check_adapters(rule: LoraRule, replica: Replica, anchors: list[list[Anchor]], islands: int) -> None:
    """Raise ConfigError for a model whose adapters are not those of the rule."""
    name, model = type(rule).__name__, replica.model
    rule.check_islands(islands)
    tuned = tuned_modules(model)
    if not tuned:
        raise ConfigError(f"{name} found no LoRA layer in the model. Fix: set model.tuning to LoRA(...)")
    trained = {match["factor"] for n in replica.params if (match := FACTOR.fullmatch(n))}
    if trained != rule.factors:
        wanted, found = "".join(sorted(rule.factors)) or "neither", "".join(sorted(trained)) or "neither"
        raise ConfigError(
            f"{name} trains {wanted} of A and B, the model's trainable factors are {found}. "
            "Fix: set model.tuning.train to match (FFA: 'B', FedSB: 'core', else 'AB')"
        )
    if rule.moves_base and any(".lora_magnitude_vector." in n for n in replica.params):
        raise ConfigError(
            f"{name} changes base weights, whose norms DoRA divides by. Fix: set model.tuning.dora to False"
        )
    if rule.needs == "each":
        for shared in anchors:
            pairs_of(shared[0].fragment.names)
    for n, p in replica.params.items():
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


def _compare_bases(replicas: Sequence[Replica], transport: Transport) -> None:
    """Frozen parameters are compared in the handshake; these are buffers."""
    models = {id(r.model): r.model for r in replicas}
    made = {key: torch.frombuffer(bytearray(_base_digest(m)), dtype=torch.uint8) for key, m in models.items()}
    rows = [made[id(r.model)] for r in replicas]
    table = transport.gather(rows)
    if bool((table != table[0]).any()):
        raise DivergenceError("islands disagree on the base weights under the adapters. Start all from the same model.")


def _base_digest(model: nn.Module) -> bytes:
    hashed = Digest()
    for _, module in tuned_modules(model):
        hashed.update(cast("Tensor", cast("nn.Module", module.base_layer).weight))
    return hashed.value()


@torch.no_grad()
def add_to_base(modules: Sequence[nn.Module], product: Product) -> None:
    """Each module's base weight += the product, in the orientation in which the layer keeps it; a shared one once."""
    change: Tensor | None = None
    done: set[int] = set()
    for module in modules:
        base = cast("nn.Module", module.base_layer)
        weight = cast("Tensor", base.weight)
        if weight.data_ptr() in done:
            continue  # islands of one process share it
        done.add(weight.data_ptr())
        if change is None:
            transposed = bool(getattr(module, "fan_in_fan_out", False)) or isinstance(base, nn.Embedding)
            change = product.matrix(transposed=transposed)
        weight.add_(change.to(weight.device, weight.dtype))


@contextmanager
def at_server_scale(aggregator: Aggregator, model: nn.Module, island: int) -> Iterator[None]:
    """Within, the model of this island has adapters of the global factors' scale."""
    if not isinstance(aggregator, LoraRule) or aggregator.ranks is None:
        yield
        return
    set_scale(model, aggregator.scale)
    try:
        yield
    finally:
        set_scale(model, aggregator.scale_of(aggregator.rank_of(island)))
