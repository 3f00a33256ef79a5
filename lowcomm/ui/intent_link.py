"""A link in a sentence: no run has it as a field, but with the time of a step it says how rarely to sync."""

from __future__ import annotations

from dataclasses import dataclass

from lowcomm.config import RunConfig
from lowcomm.model import Full, Scratch
from lowcomm.plan.choose import choose
from lowcomm.plan.codecs import CODECS, Coded
from lowcomm.plan.runtime import Job, Link
from lowcomm.planner.inputs import preset_parameters
from lowcomm.ui.sentence import NUMBER, Sentence, number

RATE = (
    rf"(?:over |at |on |with )?(?:an? )?(?:links? of )?{NUMBER}\s*([kmg])(?:(bits?)(?:/s|ps| per second)?|"
    r"(b)(?:/s|ps| per second))(?: links?)?"
)
_TRIP = r"(?:rtt|round[ -]trips?|latency|ping)"
TRIP = rf"{_TRIP}\s*(?:=|of)?\s*{NUMBER}\s*(ms|s)\b|{NUMBER}\s*(ms|s)\s*{_TRIP}"
STEP = rf"{NUMBER}\s*(ms|s|seconds?)\s*(?:per|a|an|each|for a|for each)\s*(?:inner )?step"
GOAL = 0.95
"""Share of the time that should be training, as `lowcomm plan` has it."""
FACTORS = {"k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """What was said of links and time; None: nothing."""

    rate_bytes_per_s: float | None
    rtt_s: float
    step_s: float | None
    words: tuple[str, ...]


def spoken(sentence: Sentence) -> Spoken:
    """Takes its words out."""
    rate_bytes_per_s, rtt_s, step_s, words = None, 0.0, None, list[str]()
    for match in sentence.take(RATE):
        bits = match[3] is not None or match[4] == "b"  # MB/s are bytes, Mb/s bits
        rate_bytes_per_s = number(match[1]) * FACTORS[match[2].lower()] / (8 if bits else 1)
        words.append(sentence.drop(match))
    for match in sentence.take(STEP):
        step_s = number(match[1]) / (1000 if match[2].lower() == "ms" else 1)
        words.append(sentence.drop(match))
    for match in sentence.take(TRIP):
        value, unit = (match[1], match[2]) if match[1] else (match[3], match[4])
        rtt_s = number(value) / (1000 if unit.lower() == "ms" else 1)
        words.append(sentence.drop(match))
    return Spoken(rate_bytes_per_s=rate_bytes_per_s, rtt_s=rtt_s, step_s=step_s, words=tuple(words))


def advise(link: Spoken, config: RunConfig, islands: int, every: int | None) -> tuple[int | None, str]:
    """(H for the link; None: it can't be said, or was given; one line that says why). every: H if it was given."""
    if link.rate_bytes_per_s is None:
        return None, "the link's speed is missing: say it as in 50 Mbit/s, and H is chosen for it"
    model = config.model
    sized = isinstance(model.origin, Scratch) and model.directory is None and isinstance(model.tuning, Full)
    if not sized or model.width is not None:
        return None, (
            "a run has no field for its link, and H is chosen for whole models of a preset only: here it stays as it is"
        )
    if link.step_s is None:
        return None, "say how long an inner step takes, as in 1.5 s a step, and H is chosen for it as by lowcomm plan"
    if islands < 2:
        return None, "one island has no link"
    job = Job(
        parameters=preset_parameters(model.preset), islands=islands, step_s=link.step_s, steps=max(1, config.steps)
    )
    there = Link(rate_bytes_per_s=link.rate_bytes_per_s, rtt_s=link.rtt_s)
    try:
        found = choose(job, there, utilisation=GOAL, codecs=[_coded(config)], every=every)
    except (ValueError, IndexError):
        return None, "lowcomm plan finds no settings for this link and so few steps"
    settings = [(o.prediction.settings, o) for o in found.alternatives]
    blocking = [o for s, o in settings if s.delay == 0 and s.fragments == 1]
    if not blocking:
        return None, "lowcomm plan finds no settings for this link without overlap"
    best = blocking[0].prediction
    share = f"{100 * best.utilisation:.0f} % of the time would be training (predicted, as by lowcomm plan)"
    if every is not None:
        return None, f"with H = {every} {share}"
    return best.settings.every, f"H = {best.settings.every}: {share}"


def _coded(config: RunConfig) -> Coded:
    """What the planner knows of the codec, by its bits; an unknown one counts as fp32."""
    text = repr(config.sync.codec)
    names = {"Int4(": "int4", "Int8(": "int8", "TwoBit(": "two_bit"}
    wanted = next((name for word, name in names.items() if word in text), "fp32")
    return next((c for c in CODECS if c.name == wanted), CODECS[0])
