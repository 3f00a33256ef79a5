"""The part of the table of conflicts for runs over a store: one message per contribution, members without numbers."""

from __future__ import annotations

from collections.abc import Iterator

from lowcomm.aggregate.lora.rolora import RoLoRA
from lowcomm.aggregate.lora.rule import LoraRule
from lowcomm.codec import EitherFactor, Rqm
from lowcomm.codec.dense import Dense
from lowcomm.exchange.store import Store
from lowcomm.schedule import EveryH, Streaming
from lowcomm.state.conflict import Conflict
from lowcomm.state.spec import SyncSpec
from lowcomm.sync.arrival_conflicts import of_rule

OTHER = "sync.exchange = Store"


def of_store(spec: SyncSpec) -> Iterator[Conflict]:
    """What needs all islands at once, several phases, islands with numbers, or weights that no snapshot holds."""
    if not isinstance(spec.exchange, Store):
        return
    clients, bare, leave = spec.clients, spec.codec.bare, "leave one of them out"
    if clients.secure is not None:
        yield Conflict("sync.secure", None, OTHER, "masks need every island in one sum", leave)
    if spec.noises_deltas:
        why = (
            "its noise is shared by the islands of one sum, and each contribution can be read by all who read the store"
        )
        yield Conflict("sync.privacy", type(spec.privacy).__name__, OTHER, why, "use ExampleGaussian")
    if clients.sampling is not None:
        why = "who takes part is seen in the log, and members come and go by themselves"
        yield Conflict("sync.sampling", type(clients.sampling).__name__, OTHER, why, leave)
    if clients.local_steps is not None:
        why = "members have no numbers"
        yield Conflict("sync.local_steps", clients.local_steps, OTHER, why, "mode='buffered' for unequal islands")
    if clients.attack is not None:
        yield Conflict("sync.attack", type(clients.attack).__name__, OTHER, "members have no numbers", leave)
    if clients.objective is not None and clients.objective.sends:
        why = "control variates are a second exchange in a round"
        yield Conflict("sync.objective", type(clients.objective).__name__, OTHER, why, "use FedProx")
    if not isinstance(spec.schedule, EveryH | Streaming):
        why = "rounds are whole blocks of text, and what a member sends goes into a commit when it is there"
        yield Conflict("sync.schedule", type(spec.schedule).__name__, OTHER, why, "use EveryH or Streaming")
    if isinstance(bare, Rqm):
        yield Conflict("sync.codec", "Rqm", OTHER, "its noise is that of one sum of all islands", "use Int4")
    if isinstance(bare, EitherFactor):
        why = "what a client keeps to itself is drawn by its number, and members have none"
        yield Conflict("sync.codec", "EitherFactor", OTHER, why, "use Shared with FedSA")
    if isinstance(bare, Dense) and bare.only_sums:
        why = "its contributions mean something in a sum on the way only, and a store adds nothing up"
        fix = "use Sign(vote=False), or exchange='gather'"
        yield Conflict("sync.codec", type(bare).__name__, OTHER, why, fix)
    if spec.exchange.rule is not None:
        why = "members train whole blocks of text"
        if spec.exchange.rule.even:
            yield Conflict("sync.exchange.rule.even", True, OTHER, why, "leave it out")
        if spec.exchange.rule.remembers:
            name = type(spec.exchange.rule).__name__
            yield Conflict("sync.exchange.rule", name, OTHER, why, "use TokenBatch")
        if spec.exchange.rule.keeps_latest:
            name, why = type(spec.exchange.rule).__name__, "no snapshot holds the latest Delta of every member"
            yield Conflict("sync.exchange.rule", name, OTHER, why, "use Anarchic")
        if spec.exchange.rule.needs_square:
            name, why = type(spec.exchange.rule).__name__, "a committer that has just joined knows no earlier Delta"
            yield Conflict("sync.exchange.rule", name, OTHER, why, "use Decoupled")
        yield from of_rule(spec, spec.exchange.rule, OTHER)
    yield from _lora(spec)


def _lora(spec: SyncSpec) -> Iterator[Conflict]:
    rule, choice = spec.aggregator, spec.exchange
    if not isinstance(rule, LoraRule):
        return
    name = type(rule).__name__
    if rule.moves_base:
        why = "it changes base weights, which no snapshot holds"
        yield Conflict("sync.aggregator", name, OTHER, why, "use FedIT, FFA or RoLoRA")
    if rule.regauges:
        why = "its new factors have another basis, which late contributions do not fit"
        yield Conflict("sync.aggregator", name, OTHER, why, "use FedIT, FFA or RoLoRA")
    if rule.ranks is not None or rule.shrinks:
        yield Conflict("sync.aggregator.ranks", rule.ranks, OTHER, "members have no numbers", "use equal ranks")
    if isinstance(rule, RoLoRA) and isinstance(choice, Store) and not choice.waits_for_all:
        mode = f"mode={choice.mode!r}" if choice.rule is None else f"rule={type(choice.rule).__name__}(...)"
        why = "factors take turns by the round, and late contributions are of the other one"
        yield Conflict("sync.aggregator", name, f"{OTHER}({mode})", why, "mode='synchronous', or FFA")
