"""What every LoRA rule shares: layers by name, clients' ranks and scales, and how a rule becomes an aggregator.

A rule sees one layer of all clients at a time (`layer`, a pure function) and says what goes down. As an `Aggregator` it
gets the contributions of a round, takes them apart by the names that peft gives its factors, and returns a Delta that
leads from the old global factors to the new ones, with what is to be added to frozen base weights beside it.

Every island has factors of rank `rank`; one of lower rank has zeros behind its own rows, which get no gradient (the row
of A meets a zero column of B and the other way round), so that they stay zero. Where ranks shrink inside a run
(`shrinks`) its contributions are of its own rank, and its scale stays that of the rank it began with.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from lowcomm.aggregate.base import Aggregate, Aggregator, Context
from lowcomm.aggregate.lora.adapter import Adapter, Product, mean_factors, relative_error, target
from lowcomm.aggregate.mean import Mean
from lowcomm.types import ConfigError, Contribution, Delta, Round, require

FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<kind>embedding_)?(?P<factor>[AB])\.(?P<adapter>[^.]+)(\.weight)?")
"""peft's names of factors: LAYER.lora_A.ADAPTER.weight, LAYER.lora_embedding_A.ADAPTER."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Names of a layer's two factors."""

    layer: str
    """Name of the tuned module."""
    a: str
    b: str


@dataclass(frozen=True, kw_only=True)
class Aggregated:
    """What one layer's aggregation gives."""

    server: Adapter
    """The new global factors."""
    clients: tuple[Adapter, ...]
    """What each client goes on with; factors that stay private are its own."""
    residual: Product | None = None
    """What every client adds to its frozen base weight [out, in]; None: nothing."""
    up_bytes: tuple[int, ...]
    """fp32 bytes that each client sends."""
    down_bytes: tuple[int, ...]
    """fp32 bytes that each client gets from a server."""
    error: float
    """||sum_k p_k s_k B_k A_k - what the server's factors and the residual make||_F over the norm of the sum."""
    wanted_norm: float = 0.0
    """Norm of the sum, to weigh layers against each other."""


@dataclass(frozen=True, kw_only=True)
class LoraRule(Aggregator):
    """Base of the LoRA rules. `alpha`, `rank` and `rslora` must be those of the model's adapters."""

    rank: int = 8
    """Rank of the global factors."""
    alpha: float = 16.0
    """LoRA's alpha: dW = alpha / r B A."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead (rsLoRA, arXiv 2312.03732)."""
    ranks: tuple[int, ...] | None = None
    """Rank of each island, at the start where ranks shrink, at most `rank`; None: all have `rank`."""
    by: Literal["tokens", "uniform"] = "tokens"
    """Weight of an island: the tokens that it trained, or the same for each."""

    needs: ClassVar[Literal["sum", "each"]] = "each"
    factors: ClassVar[frozenset[str]] = frozenset("AB")
    """Factors that are trained: FFA-LoRA trains B only."""
    regauges: ClassVar[bool] = False
    """New factors are another basis of the same dW: moments of an optimizer over them mean nothing any more."""
    moves_base: ClassVar[bool] = False
    """Part of a round's result is added to frozen base weights."""

    @property
    def bounded(self) -> bool:
        return self.by == "uniform"

    def weights(self, tokens: Sequence[float]) -> list[float]:
        return Mean(by=self.by).weights(tokens)

    def check(self) -> None:
        require(self.rank >= 1, "sync.aggregator.rank", self.rank, "1 or more", "8 is usual")
        require(self.alpha > 0, "sync.aggregator.alpha", self.alpha, "above 0", "twice the rank is usual")
        require(self.by in ("tokens", "uniform"), "sync.aggregator.by", self.by, "tokens or uniform", "use tokens")
        for r in self.ranks or ():
            require(1 <= r <= self.rank, "sync.aggregator.ranks", r, f"1 to rank = {self.rank}", "lower it")

    def check_islands(self, islands: int) -> None:
        if self.ranks is not None and len(self.ranks) != islands:
            raise ConfigError(
                f"sync.aggregator.ranks has {len(self.ranks)} ranks, there are {islands} islands. "
                "Fix: give one rank per island"
            )

    def scale_of(self, rank: int) -> float:
        """alpha / r or alpha / sqrt(r)."""
        return self.alpha / (rank**0.5 if self.rslora else rank)

    @property
    def scale(self) -> float:
        """The global factors' scale."""
        return self.scale_of(self.rank)

    def rank_of(self, island: int) -> int:
        """The island's rank."""
        return self.rank if self.ranks is None else self.ranks[island]

    @property
    def shrinks(self) -> bool:
        """Whether islands' ranks shrink inside a run."""
        return False

    def next_rank(self, after: Sequence[Adapter], before: Sequence[Adapter]) -> int:
        """The rank with which an island goes on, from 1 to the one that it has.

        after, before: its factors of each layer, as it has trained them and as it got them, at its rank and scale.
        """
        return before[0].rank

    @abstractmethod
    def layer(
        self, adapters: Sequence[Adapter], weights: Sequence[float], before: Adapter, round: Round, layer: int = 0
    ) -> Aggregated:
        """One layer of all clients -> what goes down. weights sum to 1; 0 leaves a client out.

        before: the global factors that the clients got; layer: its number, for rules that draw at random.
        """

    def down(self, server: Adapter, adapters: Sequence[Adapter]) -> tuple[Adapter, ...]:
        """The server's factors for each client: its rank, its scale."""
        return tuple(server.cut(x.rank).at_scale(x.scale) for x in adapters)

    def __call__(self, contributions: Sequence[Contribution]) -> Delta:
        if self.needs == "each":
            raise ConfigError(f"{type(self).__name__} needs the global factors: it works inside a LocalSGD")
        return Mean(by=self.by)(contributions)

    def combine(self, contributions: Sequence[Contribution], context: Context) -> Aggregate:
        """The Delta from the old global factors to the new ones, base updates, and the error as a note."""
        if self.needs == "sum":
            return Aggregate(delta=self(contributions))
        if not contributions:
            raise ValueError("no contribution to aggregate")
        start = context.start
        delta: Delta = dict.fromkeys(start, next(iter(start.values())))
        residuals: dict[str, tuple[Tensor, Tensor]] = {}
        pairs = pairs_of(start)
        tally = _Tally()
        for number, pair in enumerate(pairs):
            before = Adapter(a=start[pair.a], b=start[pair.b], scale=self.scale)
            clients = [self._client(c, pair, start) for c in contributions]
            done = self.layer(clients, [c.weight for c in contributions], before, context.round, number)
            delta[pair.a], delta[pair.b] = before.a - done.server.a, before.b - done.server.b
            if done.residual is not None:
                residuals[pair.layer] = (done.residual.b, done.residual.a)
            tally.add(pair.layer, done)
        in_pairs = {name for pair in pairs for name in (pair.a, pair.b)}
        rest = [name for name in start if name not in in_pairs]  # heads, biases, DoRA's magnitudes: plain means
        for name in rest:
            total = contributions[0].delta[name] * contributions[0].weight
            for c in contributions[1:]:
                total = total + c.delta[name] * c.weight
            delta[name] = total
        return Aggregate(delta=delta, residuals=residuals, error=tally.error, notes=tally.notes(type(self).__name__))

    def _client(self, c: Contribution, pair: Pair, start: Delta) -> Adapter:
        first, sent = self.rank_of(c.island), c.delta[pair.a].shape[0]
        rank = min(first, sent)
        a = start[pair.a][:sent] - c.delta[pair.a]
        b = start[pair.b][:, :sent] - c.delta[pair.b]
        return Adapter(a=a[:rank], b=b[:, :rank], scale=self.scale_of(first))

    def adapters(self, factors: Delta, island: int, rank: int) -> list[Adapter]:
        """The first `rank` rows of an island's factors, by layer."""
        scale = self.scale_of(self.rank_of(island))
        found = [(factors[pair.a], factors[pair.b]) for pair in pairs_of(factors)]
        return [Adapter(a=a[:rank], b=b[:, :rank], scale=scale) for a, b in found]

    def local(self, name: str, value: Tensor, island: int, rank: int | None = None) -> Tensor:
        """What the island keeps of a global factor: rows (A) or columns (B) of its rank, B at its scale.

        rank: the one that it has now; None: the one of `ranks`.
        """
        match, first = FACTOR.fullmatch(name), self.rank_of(island)
        rank = first if rank is None else rank
        if match is None or rank == self.rank:
            return value
        own = value.clone()
        clear_beyond(name, own, rank)
        if match["factor"] == "B":
            own *= self.scale / self.scale_of(first)
        return own


@dataclass(kw_only=True)
class _Tally:
    """Errors of all layers."""

    wanted: float = 0.0
    off: float = 0.0
    worst: tuple[float, str] = (0.0, "")
    layers: int = field(default=0)

    def add(self, layer: str, done: Aggregated) -> None:
        self.wanted += done.wanted_norm**2
        self.off += (done.error * done.wanted_norm) ** 2
        self.worst = max(self.worst, (done.error, layer))
        self.layers += 1

    @property
    def error(self) -> float | None:
        if not self.layers:
            return None
        return (self.off / self.wanted) ** 0.5 if self.wanted > 0 else 0.0

    def notes(self, rule: str) -> tuple[str, ...]:
        if self.error is None:
            return ()
        worst = f", at worst {self.worst[0]:.3g} in {self.worst[1]}" if self.worst[1] else ""
        return (f"{rule}: aggregation error {self.error:.3g} over {self.layers} layers{worst}",)


def cut_factor(name: str, value: Tensor, rank: int) -> Tensor:
    """The first `rank` rows of A or columns of B, as a view; any other tensor whole."""
    match = FACTOR.fullmatch(name)
    if match is None:
        return value
    return value[:rank] if match["factor"] == "A" else value[:, :rank]


def clear_beyond(name: str, value: Tensor, rank: int) -> None:
    """Zero what `cut_factor` leaves out, in place."""
    match = FACTOR.fullmatch(name)
    if match is not None:
        (value[rank:] if match["factor"] == "A" else value[:, rank:]).zero_()


def pairs_of(names: Sequence[str] | Delta) -> list[Pair]:
    """The layers that have both factors among the names, in order. Raises ConfigError for one without its partner."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        if match := FACTOR.fullmatch(name):
            found.setdefault((match["layer"], match["adapter"]), {})[match["factor"]] = name
    for (layer, _), factors in found.items():
        if len(factors) == 1:
            raise ConfigError(
                f"{layer} is exchanged with one of its LoRA factors only ({next(iter(factors.values()))}). "
                "Fix: train both and keep them in one fragment (schedule EveryH), or use FFA"
            )
    return [Pair(layer=layer, a=f["A"], b=f["B"]) for (layer, _), f in found.items()]


def finish(
    rule: LoraRule,
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    server: Adapter,
    residual: Product | None = None,
    *,
    clients: tuple[Adapter, ...] | None = None,
    up: str = "ab",
    down: str = "ab",
    down_bytes: int | None = None,
) -> Aggregated:
    """The result with its error and bytes. up, down: the factors that cross; down_bytes: instead of theirs."""
    wanted = target(adapters, weights)
    got = server.product if residual is None else server.product + residual
    goes_on = rule.down(server, adapters) if clients is None else clients
    return Aggregated(
        server=server,
        clients=goes_on,
        residual=residual,
        up_bytes=tuple(x.nbytes(a="a" in up, b="b" in up) for x in adapters),
        down_bytes=tuple(x.nbytes(a="a" in down, b="b" in down) if down_bytes is None else down_bytes for x in goes_on),
        error=relative_error(wanted, got),
        wanted_norm=wanted.norm(),
    )


def naive(rule: LoraRule, adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Means of A and of B at the rule's rank and scale."""
    return mean_factors(adapters, weights, rule.rank, rule.scale)
