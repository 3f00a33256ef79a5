"""A sentence to a configuration, by rules: a recipe, fields of it, and what was not understood.

"8 islands over 50 Mbit/s, int4, 2000 steps, SmolLM2 LoRA". The text is compared with patterns and never run; what comes
out is a form like any other, which is shown as differences from the recipe and checked before anything starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lowcomm.config import RunConfig
from lowcomm.membership import DEFAULT_ISLANDS
from lowcomm.types import ConfigError, require
from lowcomm.ui.form import Judged, judge, recipe_config, with_free_name
from lowcomm.ui.intent_codecs import codec_of
from lowcomm.ui.intent_link import advise, spoken
from lowcomm.ui.intent_recipes import recipe_of
from lowcomm.ui.intent_rules import RULES
from lowcomm.ui.recipes import offered
from lowcomm.ui.rows import rows_of
from lowcomm.ui.sentence import LONGEST, TAKEN, Sentence

ASSIGNED = r"(?<![\w.=])(?:--)?([a-z][a-z_-]*(?:\.[a-z][a-z_-]*)*)\s?=\s?('[^']*'|\"[^\"]*\"|[^\s,;]+)"
"""sync.every=50: a field by its own name."""


@dataclass(frozen=True, kw_only=True)
class Understood:
    """What a sentence says."""

    judged: Judged
    because: dict[str, str]
    """The words that each field, or "recipe", comes from."""
    notes: tuple[str, ...]
    left: tuple[str, ...]
    """Words that no rule knows."""


def understand(text: str, runs_dir: Path, current: str | None = None) -> Understood:
    """Raises ConfigError for a text that is too long or empty. current: the recipe whose form is open."""
    plain = " ".join(text.replace(TAKEN, " ").split())
    require(
        0 < len(plain) <= LONGEST, "sentence", plain[:40], f"1 to {LONGEST} characters", "say what is to be trained"
    )
    sentence = Sentence(text=plain)
    names = [info.name for info in offered()]
    if current is not None and current not in names:
        raise ConfigError(f"recipe = {current[:80]!r} is not allowed: one of those listed. Fix: choose it in the list")
    reference, words = recipe_of(sentence, names, current)
    because = {"recipe": words} if words else {}
    config = recipe_config(reference)
    link = spoken(sentence)
    given, notes = _fields(sentence, config, because)
    given = with_free_name(config, given, runs_dir)
    judged = judge(reference, given, runs_dir)
    if link.words:
        told = judged.config
        every = told.sync.every if "sync.every" in because else None
        chosen, why = advise(link, told, DEFAULT_ISLANDS if told.islands is None else told.islands, every)
        notes.append(f"{', '.join(link.words)}: {why}")
        if chosen is not None and chosen != told.sync.every:
            because["sync.every"] = ", ".join(link.words)
            judged = judge(reference, {**given, "sync.every": str(chosen)}, runs_dir)
    return Understood(judged=judged, because=because, notes=tuple(notes), left=tuple(sentence.rest()))


def _fields(sentence: Sentence, config: RunConfig, because: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Fields and notes; `because` gets the words."""
    given: dict[str, str] = {}
    notes: list[str] = []
    known = {row.path: row.value for row in rows_of(config)}

    def put(fields: dict[str, str], words: str) -> None:
        for path, value in fields.items():
            if path not in known:
                notes.append(f"{words}: the recipe has no {path}")
            elif path not in given:
                because[path] = words
                if known[path] != value:
                    given[path] = value
                else:
                    notes.append(f"{words}: {path} is {value} already")

    for match in sentence.take(ASSIGNED):
        path = match[1].replace("-", "_").lower()
        if path in known:
            put({path: match[2].strip("'\"")}, sentence.drop(match))
    codec = codec_of(sentence, config.sync.codec)
    if codec is not None and codec[1] is None:
        notes.append(f"{codec[0]}: the recipe's codec is that already")
    elif codec is not None and codec[1] is not None:
        put({"sync.codec": codec[1]}, codec[0])
    for rule in RULES:
        for match in sentence.take(rule.pattern):
            if TAKEN not in match[0]:
                put(dict(rule.fields(match, config)), sentence.drop(match))
    return given, notes
