"""Rules from words to fields: each a pattern and the fields that its match sets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lowcomm.config import RunConfig
from lowcomm.ui.sentence import COUNT, NUMBER, count, number

Match = re.Match[str]
PLACES = (
    r"(?:islands?|clients?|sites?|workers?|nodes?|hospitals?|machines?|replicas?|computers?|data cent(?:er|re)s?|"
    r"organi[sz]ations?|volunteers?)"
)
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a pattern means. `fields` may be empty: the words are then understood to change nothing."""

    pattern: str
    fields: Callable[[Match, RunConfig], Mapping[str, str]]


def _one(path: str) -> Callable[[Match, RunConfig], Mapping[str, str]]:
    return lambda match, _: {path: str(count(match[1]))}


def _real(path: str) -> Callable[[Match, RunConfig], Mapping[str, str]]:
    return lambda match, _: {path: f"{number(match[1]):g}"}


def _fixed(path: str, value: str) -> Callable[[Match, RunConfig], Mapping[str, str]]:
    return lambda match, _: {path: value}


def _checkpoint(match: Match, config: RunConfig) -> Mapping[str, str]:
    unit = match[2][0].lower()
    if unit == "r":
        return {"checkpoint.every_rounds": str(count(match[1]))}
    return {"checkpoint.every_s": f"{count(match[1]) * SECONDS[unit]:g}"}


def _rank(match: Match, config: RunConfig) -> Mapping[str, str]:
    """Of adapters: the rule that aggregates them has to know it too."""
    rank = str(count(match[1]))
    places = {"model.tuning.rank": config.model.tuning, "sync.aggregator.rank": config.sync.aggregator}
    return {path: rank for path, part in places.items() if hasattr(part, "rank")}


def _source(match: Match, config: RunConfig) -> Mapping[str, str]:
    glob = next(group for group in match.groups() if group)
    kinds = {".jsonl": "JsonLines", ".json": "JsonLines", ".csv": "Csv", ".parquet": "Parquet"}
    kind = next((name for end, name in kinds.items() if glob.endswith(end)), "TextFiles")
    return {"data.source": f"{kind}(glob={glob!r})"}


def _device(match: Match, config: RunConfig) -> Mapping[str, str]:
    return {"device": "cpu" if match[1].lower().startswith("cpu") else "cuda"}


RULES: tuple[Rule, ...] = (
    Rule(pattern=r"(?:text |data |files? |corpus )?(?:in |from |of )?(?:'([^'\n]+)'|\"([^\"\n]+)\")", fields=_source),
    Rule(
        pattern=r"(?:text |data |files? |corpus )?(?:in |from |of )?"
        r"((?:[\w./~-]*\*[\w./*-]*)|(?:[\w./~-]+\.(?:txt|md|jsonl|json|csv|parquet)))(?=[\s,;]|$)",
        fields=_source,
    ),
    Rule(pattern=r"\b(?:named|called|name(?: is)?)\s+([\w.-]+)", fields=lambda m, _: {"name": m[1].rstrip(".")}),
    Rule(pattern=rf"\beval(?:uat\w+|s)?\s+every\s+{COUNT}\s*(?:inner )?steps?\b", fields=_one("eval.every")),
    Rule(
        pattern=rf"\b(?:checkpoints?|saves?|saving)\s+every\s+{COUNT}\s*"
        r"(rounds?|minutes?|mins?|seconds?|secs?|s|hours?|h)\b",
        fields=_checkpoint,
    ),
    Rule(
        pattern=rf"\b(?:sync\w*|exchang\w*|merg\w*|averag\w*|communicat\w*)?\s*every\s+{COUNT}\s*"
        r"(?:inner |local )?steps?\b",
        fields=_one("sync.every"),
    ),
    Rule(pattern=rf"\bH\s*(?:=|:|of|is)?\s*{COUNT}\b", fields=_one("sync.every")),
    Rule(
        pattern=rf"\b{COUNT}\s*(?:inner |local )?steps?\s*(?:per|a|each|between)\s*(?:rounds?|sync\w*)\b",
        fields=_one("sync.every"),
    ),
    Rule(pattern=rf"\b{COUNT}\s+(?:simulated )?{PLACES}\b", fields=_one("islands")),
    Rule(pattern=rf"\b(?:for )?{COUNT}\s*(?:inner |training )?steps?\b", fields=_one("steps")),
    Rule(pattern=rf"\bseed\s*(?:=|of)?\s*{COUNT}\b", fields=_one("seed")),
    Rule(
        pattern=rf"\bouter (?:lr|learning rate)\s*(?:=|of)?\s*{NUMBER}",
        fields=_real("sync.outer.lr"),
    ),
    Rule(pattern=rf"\bmomentum\s*(?:=|of)?\s*{NUMBER}", fields=_real("sync.outer.momentum")),
    Rule(pattern=rf"\b(?:inner )?(?:lr|learning rate)\s*(?:=|of)?\s*{NUMBER}", fields=_real("inner.optimizer.lr")),
    Rule(pattern=rf"\bbatch(?:es)?(?: size)?\s*(?:=|of)?\s*{COUNT}\b", fields=_one("data.batch_size")),
    Rule(
        pattern=rf"\b(?:seq(?:uence)?s?(?:[ _]len(?:gth)?)?|context)\s*(?:=|of)?\s*{COUNT}(?: tokens)?\b",
        fields=_one("data.seq_len"),
    ),
    Rule(pattern=rf"\brank\s*(?:=|of)?\s*{COUNT}\b", fields=_rank),
    Rule(pattern=r"\b(?:on (?:the |a |one )?)?(cpus?|gpus?|cuda)\b", fields=_device),
    Rule(
        pattern=r"\b(?:simulat\w+|in one process)\b",
        fields=_fixed("transport", "simulated"),
    ),
    Rule(
        pattern=r"\b(nano|tiny|3m|30m|150m|1b)\b(?:[ -](?:parameters?|params?))?(?:[ -]?(?:model|llama))?",
        fields=lambda match, _: {"model.preset": match[1].lower()},
    ),
    Rule(pattern=r"\bwith baselines\b", fields=lambda m, _: {"eval.clients": "True", "eval.baselines": "True"}),
    Rule(pattern=r"\b(?:no|without) (?:an? )?export\b", fields=_fixed("checkpoint.export", "False")),
)
"""In this order: what an earlier one has taken, a later one does not see."""
