"""Train/validation split: by hash, the same on every machine, and near the fraction that was asked for.

Whole documents are held out by the hash of their key. Where that gives a share of the bytes that is not near the
fraction (few files, or one that is much larger than the others), documents are chosen by size, still in the order of
their hashes, and the largest one is cut, so that neither side depends on what a file is called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Literal

from lowcomm.data.errors import bad
from lowcomm.data.source import Corpus, Document
from lowcomm.types import ConfigError

Salt = Literal["validation", "tuning", "rows"]
Part = tuple[Document | None, Document | None]
"""(kept, held out): one of the two, or the two pieces of a document that was cut."""

_NEAR = 2.0
"""A share of the bytes between the fraction over this and the fraction times this is near it."""
_LEAST_CUT_BYTES = 16
"""Fewer bytes than this are not worth a cut."""


def fraction_of(key: bytes, salt: Salt) -> float:
    """A number in [0, 1) from SHA-256 of the key; salts give independent numbers."""
    return int.from_bytes(sha256(salt.encode() + b"\0" + key).digest()[:6], "big") / 2**48


def is_held_out(key: bytes, fraction: float, salt: Salt) -> bool:
    return fraction_of(key, salt) < fraction


def split(
    corpus: Corpus, fraction: float, tuning: bool, by_folder: bool = False
) -> tuple[list[Document], list[Document]]:
    """Training and validation documents.

    With `tuning` the reported validation set is put aside and a part of the training documents takes its
    place, so that settings are never chosen on the set that is reported. by_folder: a part of each top folder is
    held out. Raises ConfigError if a side is empty.
    """
    divide = _folders if by_folder else hold_out
    if corpus.validation is not None:
        train, held = corpus.documents, corpus.validation
    else:
        train, held = divide(corpus.documents, fraction, "validation")
    if tuning:
        train, held = divide(train, fraction, "tuning")
    return train, held


def hold_out(documents: Sequence[Document], fraction: float, salt: Salt) -> tuple[list[Document], list[Document]]:
    """(kept, held out), as `parted` has them."""
    return _sides(parted(documents, fraction, salt))


def _sides(parts: Sequence[Part]) -> tuple[list[Document], list[Document]]:
    return [kept for kept, _ in parts if kept is not None], [held for _, held in parts if held is not None]


def _folders(documents: Sequence[Document], fraction: float, salt: Salt) -> tuple[list[Document], list[Document]]:
    """As `hold_out`, of each top folder alone; one that is too small to be parted is trained on as a whole."""
    parts: list[Part] = [(d, None) for d in documents]
    folders: dict[str, list[int]] = {}
    for i, document in enumerate(documents):
        folders.setdefault(document.file.partition("/")[0], []).append(i)
    for own in folders.values():
        mine = [documents[i] for i in own]
        if can_be_parted(mine):
            for i, part in zip(own, parted(mine, fraction, salt), strict=True):
                parts[i] = part
    kept, held = _sides(parts)
    return (kept, held) if held else hold_out(documents, fraction, salt)


def can_be_parted(documents: Sequence[Document]) -> bool:
    """Whether both sides would get something: there are different documents, or one that can be cut."""
    return len({d.key for d in documents}) > 1 or (len(documents) == 1 and _can_be_cut(documents[0]))


def parted(documents: Sequence[Document], fraction: float, salt: Salt) -> list[Part]:
    """The part of each document that is kept and the part that is held out; both sides get at least one.

    Raises ConfigError for a corpus that has no two different documents and can't be cut.
    """
    sizes: dict[bytes, int] = {}
    for document in documents:
        sizes[document.key] = sizes.get(document.key, 0) + len(document.text)
    if len(documents) == 1 and not documents[0].messages:
        size = len(documents[0].text)
        return [_cut(documents[0], fraction, size - int(size * (1 - fraction)))]
    if len(sizes) < 2:
        raise bad("validation_fraction", fraction, "a corpus with two different documents", "add text to the source")
    held, rest_bytes = _chosen(sizes, fraction, salt)
    parts: list[Part] = [(None, d) if d.key in held else (d, None) for d in documents]
    if rest_bytes < _LEAST_CUT_BYTES and held:
        return parts
    alone = Counter(d.key for d in documents)
    able = [i for i, d in enumerate(documents) if alone[d.key] == 1 and d.key not in held and _can_be_cut(d)]
    largest = max(able, key=lambda i: (len(documents[i].text), -fraction_of(documents[i].key, salt)), default=None)
    if largest is not None and _LEAST_CUT_BYTES <= rest_bytes < len(documents[largest].text):
        parts[largest] = _cut(documents[largest], fraction, rest_bytes)
        return parts
    held = _with_one_more(sizes, held, fraction, salt)
    return [(None, d) if d.key in held else (d, None) for d in documents]


def _with_one_more(sizes: Mapping[bytes, int], held: set[bytes], fraction: float, salt: Salt) -> set[bytes]:
    """Also the key that brings the share closest to the fraction, if one does, or if there is none yet."""
    target_bytes = fraction * sum(sizes.values())
    held_bytes = sum(sizes[key] for key in held)
    rest = sorted((key for key in sizes if key not in held), key=lambda key: fraction_of(key, salt))
    best = min(rest, key=lambda key: abs(held_bytes + sizes[key] - target_bytes))
    closer = abs(held_bytes + sizes[best] - target_bytes) < abs(held_bytes - target_bytes)
    return held | {best} if not held or (closer and len(rest) > 1) else held


def _chosen(sizes: Mapping[bytes, int], fraction: float, salt: Salt) -> tuple[set[bytes], int]:
    """Keys of whole documents to hold out, and the bytes that are missing to the fraction (0: none are)."""
    numbers = {key: fraction_of(key, salt) for key in sizes}
    by_hash = sorted(numbers, key=lambda key: numbers[key])
    below = sum(number < fraction for number in numbers.values())
    held = set(by_hash[: min(max(below, 1), len(sizes) - 1)])
    target_bytes = fraction * sum(sizes.values())
    if target_bytes / _NEAR <= sum(sizes[key] for key in held) <= target_bytes * _NEAR:
        return held, 0
    held, held_bytes = set(), 0
    for key in by_hash:
        if held_bytes + sizes[key] <= target_bytes:
            held.add(key)
            held_bytes += sizes[key]
    return held, 0 if held_bytes >= target_bytes / _NEAR else round(target_bytes - held_bytes)


def _can_be_cut(document: Document) -> bool:
    """A conversation can't: its answers belong to its questions."""
    return not document.messages and len(document.text) >= 2 * _LEAST_CUT_BYTES


def _cut(document: Document, fraction: float, tail_bytes: int) -> tuple[Document, Document]:
    """The document without its tail, and the tail, from the start of a line where one is near."""
    text = document.text
    at = len(text) - max(tail_bytes, 1)
    before, after = text.rfind(b"\n", 0, at) + 1, text.find(b"\n", at) + 1
    lines = (line for line in (after, before) if 0 < line < len(text) and abs(line - at) <= tail_bytes / 2)
    at = next(lines, at)
    while at < len(text) and text[at] & 0xC0 == 0x80:  # never inside a character
        at += 1
    if not 0 < at < len(text):
        raise _too_short(document, fraction)
    return replace(document, text=text[:at]), replace(document, text=text[at:])


def _too_short(document: Document, fraction: float) -> ConfigError:
    legal = f"a part of the only document ({len(document.text)} bytes)"
    return bad("validation_fraction", fraction, legal, "add text to the source")
