"""Train/validation split by hash: the same on every machine, and no file is on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Literal

from lowcomm.data.errors import bad
from lowcomm.data.source import Corpus, Document

Salt = Literal["validation", "tuning", "rows"]


def fraction_of(key: bytes, salt: Salt) -> float:
    """A number in [0, 1) from SHA-256 of the key; salts give independent numbers."""
    return int.from_bytes(sha256(salt.encode() + b"\0" + key).digest()[:6], "big") / 2**48


def is_held_out(key: bytes, fraction: float, salt: Salt) -> bool:
    return fraction_of(key, salt) < fraction


def split(corpus: Corpus, fraction: float, tuning: bool) -> tuple[list[Document], list[Document]]:
    """Training and validation documents.

    With `tuning` the reported validation set is put aside and a part of the training documents takes its
    place, so that settings are never chosen on the set that is reported. Raises ConfigError if a side is empty.
    """
    if corpus.validation is not None:
        train, held = corpus.documents, corpus.validation
    else:
        train, held = hold_out(corpus.documents, fraction, "validation")
    if tuning:
        train, held = hold_out(train, fraction, "tuning")
    return train, held


def hold_out(documents: Sequence[Document], fraction: float, salt: Salt) -> tuple[list[Document], list[Document]]:
    """(kept, held out) by hash of the key; small corpora hold out at least one file and keep at least one."""
    numbers = {document.key: fraction_of(document.key, salt) for document in documents}
    if len(numbers) == 1 and len(documents) == 1:
        return _cut(documents[0], fraction)
    if len(numbers) < 2:
        raise bad("validation_fraction", fraction, "a corpus with two different documents", "add text to the source")
    held = {key for key, number in numbers.items() if number < fraction}
    held = held or {min(numbers, key=lambda key: numbers[key])}
    if len(held) == len(numbers):
        held.remove(max(numbers, key=lambda key: numbers[key]))
    return [d for d in documents if d.key not in held], [d for d in documents if d.key in held]


def _cut(document: Document, fraction: float) -> tuple[list[Document], list[Document]]:
    """One file alone cannot be split by path: its tail, from the start of a line, is held out."""
    text = document.text
    at = int(len(text) * (1 - fraction))
    line = text.find(b"\n", at)
    at = line + 1 if 0 <= line < len(text) - 1 else at
    while at < len(text) and text[at] & 0xC0 == 0x80:  # never inside a character
        at += 1
    if not 0 < at < len(text):
        raise bad(
            "validation_fraction",
            fraction,
            f"a part of the only document ({len(text)} bytes)",
            "add text to the source",
        )
    head = Document(document.file, document.key, text[:at])
    return [head], [Document(document.file, document.key, text[at:])]
