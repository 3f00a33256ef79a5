"""A plan of faults: a list of (run, round, phase, island, fault), read from JSON or TOML, or drawn from a seed."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowcomm.chaos.kinds import KINDS, pairs
from lowcomm.types import ConfigError, require

FIRST_ROUND = 3
"""Before it members are still starting."""
LAST_ROUNDS = 4
"""Rounds at the end of a run in which nothing begins, so that what was lost can be trained again."""
AWAY = 4
"""Versions after which a fault comes to another island than the one it was meant for, which may be dead by then."""
MOST_FOR_S = 3600.0
FIELDS = ("run", "round", "phase", "island", "fault", "for_s")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault."""

    fault: str
    """A name of `kinds.KINDS`."""
    phase: str
    """In which it comes: a name of `kinds.PHASES`."""
    round: int
    """The first version of the chain at which it may come."""
    island: int | None = None
    """Number of the island, from 0; None: whichever comes to the phase first, as after `AWAY` versions without it."""
    for_s: float = 2.0
    """Seconds that it lasts, where it has a duration."""
    run: int = 0
    """Number of the run that it comes in, from 0."""

    @property
    def lasts_s(self) -> float:
        """Seconds; 0 for what happens at once."""
        return self.for_s if KINDS[self.fault].lasts else 0.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Faults of one or several runs of the same recipe."""

    faults: tuple[Fault, ...]
    seed: int = 0
    """Of what is drawn while a fault goes on."""

    @property
    def runs(self) -> int:
        """Number of runs beside the one without faults."""
        return 1 + max((f.run for f in self.faults), default=-1)

    def check(self, islands: int, rounds: int) -> None:
        """Raise ConfigError for the first fault that can't come in a run of so many islands and rounds."""
        require(bool(self.faults), "faults", 0, "1 or more", "list one, or draw some with --faults")
        for number, one in enumerate(self.faults):
            _check(one, f"faults[{number}]", islands, rounds)


def _check(one: Fault, name: str, islands: int, rounds: int) -> None:
    require(one.fault in KINDS, f"{name}.fault", one.fault, f"one of {', '.join(KINDS)}", "take one of them")
    phases = KINDS[one.fault].phases
    require(one.phase in phases, f"{name}.phase", one.phase, f"{', '.join(phases)} with {one.fault!r}", "take one")
    last = rounds - LAST_ROUNDS
    legal = f"{FIRST_ROUND} to {last} in a run of {rounds} rounds"
    require(FIRST_ROUND <= one.round <= last, f"{name}.round", one.round, legal, "take one, or pass more --steps")
    fits = one.island is None or 0 <= one.island < islands
    require(fits, f"{name}.island", one.island, f"0 to {islands - 1}, or null", "take one, or pass more --islands")
    require(0 < one.for_s <= MOST_FOR_S, f"{name}.for_s", one.for_s, "above 0, at most 3600 seconds", "2 is usual")
    require(0 <= one.run < 1000, f"{name}.run", one.run, "0 to 999", "number the runs from 0")


def read_plan(path: Path) -> Plan:
    """From a file: {seed, faults: [{run, round, phase, island, fault, for_s}]}. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ConfigError(f"plan = {str(path)!r} can't be read ({error.strerror}). Fix: give a file") from error
    except ValueError as error:
        raise ConfigError(f"plan = {str(path)!r} is neither JSON nor TOML ({error}). Fix: correct it") from error
    known = isinstance(found, dict) and set(found) <= {"seed", "faults"} and isinstance(found.get("faults"), list)
    if not known or not isinstance(found.get("seed", 0), int):
        raise ConfigError(f"plan = {str(path)!r} holds something else than seed and faults. Fix: leave it out")
    return Plan(faults=tuple(_read(row, n) for n, row in enumerate(found["faults"])), seed=found.get("seed", 0))


def _read(row: Any, number: int) -> Fault:
    name = f"faults[{number}]"
    if not isinstance(row, dict) or not {"round", "phase", "fault"} <= set(row) <= set(FIELDS):
        raise ConfigError(f"{name} = {str(row)[:100]} is not allowed: fields of {', '.join(FIELDS)}. Fix: correct it")
    for field, kinds in (("run", int), ("round", int), ("island", int | None), ("for_s", int | float)):
        value = row.get(field, 0)
        good = isinstance(value, kinds) and not isinstance(value, bool)
        require(good, f"{name}.{field}", value, "a number", "correct it")
    require(isinstance(row["phase"], str) and isinstance(row["fault"], str), name, row, "names as text", "correct it")
    return Fault(**row)


def as_json(plan: Plan) -> dict[str, Any]:
    """What `read_plan` reads."""
    return {"seed": plan.seed, "faults": [{k: getattr(one, k) for k in FIELDS} for one in plan.faults]}


def draw(
    seed: int,
    count: int,
    *,
    islands: int,
    rounds: int,
    per_run: int,
    for_s: float,
    only: Mapping[str, tuple[str, ...]] | None = None,
) -> Plan:
    """`count` faults, as evenly over all (fault, phase) as it goes, in runs of `per_run`, evenly over their rounds.

    only: phases by fault that may be drawn; None: all that there are.
    """
    rng, faults = random.Random(seed), list[Fault]()
    legal = [(name, phase) for name, phase in pairs() if only is None or phase in only.get(name, ())]
    left: list[tuple[str, str]] = []
    room = rounds - LAST_ROUNDS - FIRST_ROUND
    for number in range(count):
        if not left:
            left = _mixed(rng.sample(legal, len(legal)))
        name, phase = left.pop(0)
        run, place = divmod(number, per_run)
        faults.append(Fault(
            fault=name, phase=phase, round=FIRST_ROUND + place * room // per_run,
            island=None if phase == "snapshot" else rng.randrange(islands), for_s=for_s, run=run,
        ))  # fmt: skip
    return Plan(faults=tuple(faults), seed=seed)


def _mixed(shuffled: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """First one of each fault, then a second one of each that has more phases, and so on."""
    turns: dict[str, int] = {}
    ranked: list[tuple[int, tuple[str, str]]] = []
    for pair in shuffled:
        turns[pair[0]] = turns.get(pair[0], 0) + 1
        ranked.append((turns[pair[0]], pair))
    return [pair for _, pair in sorted(ranked, key=lambda one: one[0])]
