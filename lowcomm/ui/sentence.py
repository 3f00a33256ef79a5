"""Reading of a sentence by patterns: what a pattern takes is taken out, and what is left was not understood."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

WORDS = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "twelve": 12, "sixteen": 16, "twenty": 20, "thirty-two": 32, "fifty": 50, "hundred": 100, "a hundred": 100,
    "thousand": 1000, "a thousand": 1000,
}  # fmt: skip
NUMBER = r"(\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)"
COUNT = rf"(\d[\d,]*(?:\.\d+)?(?:e\d+)?\s?(?:k|m|million|thousand)?|{'|'.join(sorted(WORDS, key=len, reverse=True))})"
"""A whole number: digits, with k or M behind them, or a word."""
_FILLING = (
    "a an and are as at be by can each for from go i in is it its just let make me my of on or our over please run "
    "runs should so start that the then there they this to train training trained tune tuned use used using want we "
    "will with would across between all per every do"
)
FILLING = frozenset(_FILLING.split())
"""Words that say nothing of a configuration."""
TAKEN = "\0"
"""In the place of each character that a rule has taken."""
LONGEST = 2000
"""Characters of a sentence."""


@dataclass(kw_only=True)
class Sentence:
    """What was typed, and how much of it has been taken."""

    text: str
    left: str = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.text

    def take(self, pattern: str) -> Iterator[re.Match[str]]:
        """Every place where the pattern fits, in any case of letters; whoever uses a match calls `drop` with it."""
        yield from list(re.finditer(pattern, self.left, re.IGNORECASE))

    def drop(self, match: re.Match[str]) -> str:
        """Take the words of a match out; returns them."""
        start, end = match.span()
        self.left = f"{self.left[:start]}{TAKEN * (end - start)}{self.left[end:]}"
        return " ".join(self.text[start:end].split())

    def rest(self) -> list[str]:
        """Words that nothing has taken, without those that say nothing."""
        words = re.findall(rf"[^\s{TAKEN},;!?()]+", self.left)
        plain = [word.strip(".:'\"") for word in words]
        return [word for word in plain if word and word.lower() not in FILLING]


def count(text: str) -> int:
    """A match of COUNT as a number."""
    plain = " ".join(text.lower().split())
    if plain in WORDS:
        return WORDS[plain]
    found = re.fullmatch(r"([\d,.]+(?:e\d+)?)\s?(k|m|million|thousand)?", plain)
    assert found is not None
    factor = {"k": 1e3, "thousand": 1e3, "m": 1e6, "million": 1e6}.get(found[2] or "", 1.0)
    return round(number(found[1]) * factor)


def number(text: str) -> float:
    """A match of NUMBER."""
    return float(text.replace(",", ""))
