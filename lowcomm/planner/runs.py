"""Observations for `lowcomm plan --runs`: what run directories say of settings and of the utilisation that they had.

A run counts if it ended well, exchanged in lockstep by a schedule and a codec that the planner knows, and had a round
after its first. The link is the one that the plan is for: the runs were made over it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowcomm.plan.codecs import CODECS, Coded
from lowcomm.plan.learned import Observation
from lowcomm.plan.runtime import Job, Link, Settings
from lowcomm.types import require

KNOWN = {"Fp32": "fp32", "Int8": "int8", "Int4": "int4", "TwoBit": "two_bit", "TopK": "topk"}
"""Codec classes by the planner's names."""


def observations(directory: Path, link: Link) -> tuple[list[Observation], list[str]]:
    """Of all runs below a directory; and why others were left out, one line each. Raises ConfigError."""
    require(directory.is_dir(), "--runs", str(directory), "a directory with run directories", "pass runs/")
    found: list[Observation] = []
    skipped: list[str] = []
    for summary in sorted(directory.rglob("summary.json")):
        try:
            one = _observation(summary.parent, link)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, statistics.StatisticsError) as error:
            skipped.append(f"{summary.parent}: {type(error).__name__}: {error}")
            continue
        if isinstance(one, str):
            skipped.append(f"{summary.parent}: {one}")
        else:
            found.append(one)
    return found, skipped


def _observation(run: Path, link: Link) -> Observation | str:
    """The run, or why it can't be used."""
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    config: dict[str, Any] = json.loads((run / "config.json").read_text(encoding="utf-8"))
    if summary["status"] != "done":
        return f"it is {summary['status']}"
    if config["transport"] != "collective" or summary["islands"] < 2:
        return "its islands were not apart"
    if config["sync"].get("exchange") is not None:
        return "its islands did not exchange in lockstep"
    settings = settings_of(config["sync"])
    if isinstance(settings, str):
        return settings
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    syncs = [x for x in lines if x["event"] == "sync" and x["island"] == 0 and settings.every <= x["step"]]
    steps = [x["step_s"] - (x["blocked_s"] or 0.0) for x in lines if x["event"] == "step" and x["island"] == 0]
    kept = [x for x in syncs[1:] if x["step"] < summary["steps"]]
    if not kept:
        return "it has too few rounds"
    wall_s = kept[-1]["time_s"] - syncs[0]["time_s"]
    blocked_s, count = sum(x["blocked_s"] for x in kept), kept[-1]["step"] - syncs[0]["step"]
    step_s = (wall_s - blocked_s) / count if count else statistics.median(steps)
    size, islands = summary["parameters_trainable"], summary["islands"]
    job = Job(parameters=size, islands=islands, step_s=step_s, steps=summary["steps"])
    return Observation(job=job, link=link, settings=settings, utilisation=1 - blocked_s / wall_s)


def settings_of(sync: Mapping[str, Any]) -> Settings | str:
    """A run's settings in the planner's terms, or which part it does not know."""
    codec = _codec(sync["codec"])
    schedule, every = sync["schedule"], int(sync["every"])
    kind, streams = _class(schedule), int(sync.get("streams", 1))
    if codec is None:
        return f"the planner does not know its codec, {_class(sync['codec'])}"
    if kind == "EveryH":
        return Settings(every=every, codec=codec, streams=streams)
    if kind == "OneStepDelay":
        return Settings(every=every, codec=codec, delay=every, streams=streams)
    if kind == "Streaming":
        parts, delay = int(schedule["fragments"]), int(schedule["delay"])
        return Settings(every=every, codec=codec, fragments=parts, delay=delay, streams=streams)
    return f"the planner does not know its schedule, {kind}"


def _codec(stored: Mapping[str, Any]) -> Coded | None:
    inner = stored["codec"] if _class(stored) in ("ErrorFeedback", "LocalResidual") else stored
    name = KNOWN.get(_class(inner))
    return next((c for c in CODECS if c.name == name), None)


def _class(stored: Mapping[str, Any]) -> str:
    """Name of a part as a config.json has it."""
    return str(stored["type"]).rpartition(".")[2]
