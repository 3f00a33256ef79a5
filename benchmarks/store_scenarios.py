"""Scenarios of benchmarks/store.py: each starts a run, does something to it, and gives a row of what came of it."""

from __future__ import annotations

import itertools
import signal
import statistics
import time
from typing import Any

from benchmarks import store_recipes as recipes
from benchmarks.store_members import Island, Run, outcome
from lowcomm.config import RunConfig
from tests.support.s3 import BUCKET, Bucket, in_environment

Row = dict[str, Any]


def killed(short: bool) -> Row:
    """Three members, one is killed: how long the others stand still."""
    config = recipes.run(islands=3, rounds=12 if short else 30, model=recipes.NANO if short else recipes.TINY)
    run = Run("killed")
    first = start(run, config)
    run.wait(lambda: run.versions() >= 6)
    _, died = first[0].kill(), run.versions()
    run.wait_for_end()
    blocked = [_blocked(island, died) for island in first[1:]]
    usual = statistics.median(s for before, _ in blocked for s in before)
    worst = max(s for _, after in blocked for s in after)
    return outcome(run, config) | {
        "usual_wait_s": usual,
        "worst_wait_s": worst,
        "stall_s": worst - usual,
        "torchft_stall_s": 4.7,
    }


def all_killed(short: bool) -> Row:
    """Both members are killed: whoever starts next goes on."""
    config = recipes.run(islands=2, rounds=8 if short else 20)
    run = Run("all-killed")
    first = start(run, config)
    run.wait(lambda: run.versions() >= 4)
    for island in first:
        island.kill()
    run.wait(lambda: not run.living())
    before = run.versions()
    run.join("next")
    back_s = run.wait(lambda: run.versions() > before)
    run.wait_for_end()
    return outcome(run, config) | {"versions_before": before, "next_commit_s": back_s}


def frozen(short: bool) -> Row:
    """A member is stopped until it was removed, and goes on then: it heals."""
    config = recipes.run(islands=3, rounds=16 if short else 40, patience_s=2.0)
    run = Run("frozen")
    first = start(run, config)
    run.wait(lambda: run.versions() >= 4)
    first[0].kill(signal.SIGSTOP)
    run.wait(lambda: any(commit.remove for commit in run.commits()))
    first[0].kill(signal.SIGCONT)
    run.wait_for_end()
    healed = [line["note"] for line in first[0].lines("note") if "healed" in (line["note"] or "")]
    return outcome(run, config) | {"heals_of_the_frozen": len(healed)}


def store_down(short: bool) -> Row:
    """The server of the store is gone for 20 s: nobody exits, nothing is lost."""
    config = recipes.run(islands=3, rounds=8 if short else 20)
    run = Run("store-down", f"s3://{BUCKET}/run")
    server = Bucket(run.directory)
    try:
        with in_environment(server.environment()):
            run.folder = run.directory / "buckets" / BUCKET / "run"
            start(run, config)
            run.wait(lambda: run.versions() >= 3)
            server.stop()
            down = time.monotonic()
            run.wait(lambda: time.monotonic() - down >= 20)
            alive = len(run.living())
            server.start()
            before = run.versions()
            back_s = run.wait(lambda: run.versions() > before)
            run.wait_for_end()
            row = outcome(run, config)
    finally:
        run.end()
        server.stop()
    causes = {line["cause"] for island in run.islands for line in island.lines("note") if line["cause"]}
    return row | {"alive_after_20_s": alive, "next_commit_s": back_s, "causes": sorted(causes)}


def not_finite(short: bool) -> Row:
    """A batch makes one member's weights NaN: the same run without it, beside it."""
    config = recipes.run(islands=3, rounds=10 if short else 30)
    calm, bad = Run("nan-calm"), Run("nan")
    start(calm, config)
    calm.wait_for_end()
    bad.create(config)
    for number in range(3):
        bad.join(f"island-{number}", poison=20 if number == 0 else None)
    bad.wait_for_end()
    row, usual = outcome(bad, config), outcome(calm, config)
    return row | {"calm_val_loss": usual["val_loss"], "relative": row["val_loss"] / usual["val_loss"] - 1}


def churn(short: bool) -> Row:
    """Eight members, one dies or joins in every second round; the same run in calm, beside it."""
    config = recipes.run(islands=8, rounds=12 if short else 60, patience_s=10.0)
    calm, wild = Run("churn-calm"), Run("churn")
    start(calm, config)
    calm.wait_for_end()
    start(wild, config)
    deaths, joins, at = 0, 0, 3
    while wild.living() and any(island.poll() is None for island in wild.islands):
        wild.wait(lambda at=at: wild.versions() >= at or not wild.living(), 900)
        living = wild.living()
        if not living:
            break
        if (deaths + joins) % 2 == 0 and len(living) > 2:
            living[0].kill()
            deaths += 1
        else:
            wild.join(f"later-{joins}")
            joins += 1
        at = wild.versions() + 2
    wild.wait_for_end()
    row, usual = outcome(wild, config), outcome(calm, config)
    relative = row["val_loss"] / usual["val_loss"] - 1
    return row | {"deaths": deaths, "joins": joins, "calm_val_loss": usual["val_loss"], "relative": relative}


def requests(short: bool) -> Row:
    """Requests of a member in a round, beside the protocol's bound."""
    n = 4
    config = recipes.run(islands=n, rounds=8 if short else 30, model=recipes.NANO if short else recipes.TINY)
    run = Run("requests")
    start(run, config)
    run.wait_for_end()
    spent: list[int] = []
    for island in run.islands:
        lines = [line for line in island.lines("version") if line["contributions"]]
        spent += [b["requests"] - a["requests"] for a, b in itertools.pairwise(lines)]
    parts = 0
    return outcome(run, config) | {
        "requests_mean": statistics.mean(spent),
        "requests_worst": max(spent),
        "bound": 20 + (n - 1) * (1 + parts) + parts,
    }


def start(run: Run, config: RunConfig) -> list[Island]:
    run.create(config)
    return [run.join(f"island-{number}") for number in range(config.islands or 1)]


def _blocked(island: Island, died: int) -> tuple[list[float], list[float]]:
    """Seconds that it waited in each round before a version, and after it; the first round waits for others' starts."""
    lines = island.lines("sync")[1:]
    before = [line["blocked_s"] for line in lines if line["version"] < died]
    return before, [line["blocked_s"] for line in lines if line["version"] >= died]
