"""Codecs as people call them, and the specs that flags take."""

from __future__ import annotations

import dataclasses
from typing import Any

from lowcomm.ui.sentence import Sentence

PLAIN = r"\b(?:without|no) error[ -]feedback\b"
FEEDBACK = r"\b(?:with |and )?error[ -]feedback\b"
ZSTD = r"\b(?:with |and |behind )?zstd\b"
SPARSELOCO = "ErrorFeedback(codec=TopK(chunk=4096, k=64, bits=2), beta=0.95)"

CODECS: tuple[tuple[str, str, str], ...] = (
    (r"\bsparse\s?loco\b", "TopK", SPARSELOCO),
    (r"\bpower\s?sgd\b|\blow[ -]rank updates?\b", "PowerSGD", "PowerSGD()"),
    (r"\btop[ -]?k\b|\bsparse\b", "TopK", "TopK()"),
    (r"\b(?:in )?(?:int[ -]?4|(?:4|four)[ -]?bits?)\b", "Int4", "Int4()"),
    (r"\b(?:in )?(?:int[ -]?8|(?:8|eight)[ -]?bits?)\b", "Int8", "Int8()"),
    (r"\b(?:in )?fp8\b", "Fp8", "Fp8()"),
    (r"\b(?:in )?(?:2|two)[ -]?bits?\b", "TwoBit", "TwoBit()"),
    (r"\b(?:in )?(?:(?:1|one)[ -]?bit|signs?)\b", "Sign", "Sign()"),
    (r"\b(?:in )?bf16\b", "BF16", "BF16()"),
    (r"\b(?:in )?fp32\b|\b(?:uncompressed|no compression)\b", "Fp32", "Fp32()"),
)
"""Pattern, class, spec. All but SparseLoCo's, bf16 and fp32 get error feedback, as the planner and the recipes do."""
EXACT = ("BF16", "Fp32")


def codec_of(sentence: Sentence, held: object) -> tuple[str, str | None] | None:
    """(words, spec of the codec; None: the recipe's has it already). None: the sentence names none.

    held: the recipe's codec.
    """
    for pattern, name, spec in CODECS:
        match = next(sentence.take(pattern), None)
        if match is None:
            continue
        words = [sentence.drop(match)]
        plain = _taken(sentence, PLAIN, words)
        wanted = _taken(sentence, FEEDBACK, words)
        packed = _taken(sentence, ZSTD, words)
        if _has(held, name) and not (plain or wanted or packed):
            return words[0], None
        if not (plain or name in EXACT or spec == SPARSELOCO) or (wanted and name == "BF16"):
            spec = f"ErrorFeedback(codec={spec})"
        return ", ".join(words), f"{spec} | Zstd()" if packed else spec
    return None


def _taken(sentence: Sentence, pattern: str, words: list[str]) -> bool:
    match = next(sentence.take(pattern), None)
    if match is not None:
        words.append(sentence.drop(match))
    return match is not None


def _has(value: Any, name: str) -> bool:
    """Whether a part is of a class of this name, or holds one."""
    if not dataclasses.is_dataclass(value):
        return False
    return type(value).__name__ == name or any(_has(getattr(value, f.name), name) for f in dataclasses.fields(value))
