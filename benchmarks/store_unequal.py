"""One of four islands is four times slower: rounds that wait for it, and commits that do not.

Steps sleep (0.1 and 0.4 s), so that a busy machine changes little. Buffered runs have MORE times the text, with which
they take about as long as the synchronous one, where the slow island gets less text, too (`wall_s` says how long);
their outer rate is the best of RATES on the tuning split.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from benchmarks import store_recipes as recipes
from benchmarks.store_members import Island, Run, outcome
from lowcomm.config import RunConfig

RATES = (0.3, 0.5, 0.7, 1.0)
SEEDS = (0, 1, 2)
MORE = 1.75
"""Times the text of the synchronous run."""


def unequal(short: bool) -> dict[str, Any]:
    """Useful time of the fast ones, and the loss at no more wall-clock, over seeds."""
    base = recipes.run(islands=4, rounds=8 if short else 30)
    more = recipes.run(islands=4, rounds=round(MORE * (8 if short else 30)))
    rate = 0.5 if short else min(RATES, key=lambda lr: _run(f"tuning-{lr}", _tuning(more, lr))["val_loss"])
    rows: list[dict[str, Any]] = []
    for seed in SEEDS[:1] if short else SEEDS:
        for mode, config in (("synchronous", base), ("buffered", recipes.buffered(more, 3, rate))):
            rows.append({"mode": mode, "seed": seed, **_run(f"{mode}-{seed}", replace(config, seed=seed))})
    found: dict[str, Any] = {"outer_lr": rate, "rows": rows}
    for mode in ("synchronous", "buffered"):
        own = [row for row in rows if row["mode"] == mode]
        found |= {
            f"{mode}_{key}": statistics.median(row[key] for row in own) for key in ("useful", "wall_s", "val_loss")
        }
        found[f"{mode}_spread"] = max(row["val_loss"] for row in own) - min(row["val_loss"] for row in own)
    return found


def _tuning(config: RunConfig, lr: float) -> RunConfig:
    made = recipes.buffered(config, 3, lr)
    return replace(made, data=replace(made.data, tuning=True))


def _run(name: str, config: RunConfig) -> dict[str, Any]:
    run = Run(f"unequal-{name}")
    run.create(config)
    for number in range(4):
        run.join(f"island-{number}", slow_s=0.4 if number == 0 else 0.1)
    run.wait_for_end()
    useful = min(_useful(island, run.versions()) for island in run.islands[1:])
    wall_s = max(island.summary()["wall_s"] for island in run.islands)
    return outcome(run, config) | {"useful": useful, "wall_s": wall_s}


def _useful(island: Island, versions: int) -> float:
    """Share of the time in which it trained, between the first rounds and the last, which wait for starts and ends."""
    lines = [line for line in island.lines("sync") if 2 <= line["version"] < versions - 3]
    spent_s = lines[-1]["time_s"] - lines[0]["time_s"]
    return 1 - sum(line["blocked_s"] for line in lines[1:]) / spent_s
