"""What does not go with an attack: part of the table in `compatibility.py`."""

from __future__ import annotations

from collections.abc import Iterator

from lowcomm.state.conflict import Conflict, refuse
from lowcomm.state.spec import SyncSpec


def attack_conflicts(spec: SyncSpec) -> Iterator[Conflict]:
    """Parts of a spec; first of all that nobody has asked for the attack."""
    attack = spec.clients.attack
    if attack is None:
        return
    attack.check()
    name, other = type(attack).__name__, f"sync.attack = {type(attack).__name__}"
    if not spec.clients.allow_attack:
        why = "it harms the run on purpose, to test its aggregator"
        yield Conflict("sync.attack", name, "", why, "pass --sync.allow-attack, or leave sync.attack out")
    if spec.exchange is not None:
        why = "attackers send to all islands in one round"
        yield Conflict("sync.exchange", type(spec.exchange).__name__, other, why, "leave one of them out")
    action = spec.schedule(1, spec.every)
    if spec.schedule.overlaps or action.average_gradients:
        why = "it replaces Deltas while training waits, and no averaged gradient"
        yield Conflict("sync.schedule", type(spec.schedule).__name__, other, why, "use EveryH")


def check_attackers(spec: SyncSpec, islands: int, ranks: int) -> None:
    """Raise ConfigError for attackers that there are not, or islands of several ranks."""
    attack = spec.clients.attack
    if attack is None:
        return
    attack.check_islands(islands)
    if ranks > 1:
        other = f"sync.attack = {type(attack).__name__}"
        refuse(iter([Conflict("island.size", ranks, other, "each rank would attack by itself", "islands of one rank")]))
