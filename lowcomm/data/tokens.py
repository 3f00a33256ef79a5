"""Documents to one token stream, cached where encoding is slow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from lowcomm.data import cache
from lowcomm.data.source import Document
from lowcomm.data.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Documents one after the other, each with its end-of-text token."""

    stream: np.ndarray
    """uint16 or int32 [tokens]."""
    lengths: np.ndarray
    """int64 [documents]: tokens of each document, end-of-text included."""
    answers: np.ndarray | None = None
    """bool [tokens]: the tokens of conversations that are learnt; None: plain text, all are."""

    def kept(self, documents: np.ndarray) -> Tokens:
        """Those of some documents: bool [documents]."""
        inside = np.repeat(documents, self.lengths)
        answers = self.answers[inside] if self.answers is not None else None
        return Tokens(stream=self.stream[inside], lengths=self.lengths[documents], answers=answers)


def tokenise(documents: Sequence[Document], tokenizer: Tokenizer, cache_dir: Path) -> Tokens:
    """The cache goes by the exact text and tokenizer, so it never needs to be deleted by hand."""
    path = None
    if tokenizer.key is not None:
        digest = sha256(tokenizer.key.encode())
        for document in documents:
            digest.update(sha256(document.text).digest())
        path = cache_dir / "tokens" / f"{digest.hexdigest()}.npy"
        if (tokens := _stored(path, len(documents), tokenizer.vocab_size)) is not None:
            return tokens
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    parts = list(tokenizer.encode([document.text for document in documents]))
    tokens = Tokens(
        stream=np.concatenate(parts, dtype=dtype, casting="same_kind" if dtype == np.int32 else "unsafe"),
        lengths=np.array([len(part) for part in parts], dtype=np.int64),
    )
    if path is not None:
        cache.write_arrays(path, [tokens.stream, tokens.lengths])
    return tokens


def _stored(path: Path, documents: int, vocab_size: int) -> Tokens | None:
    arrays = cache.read_arrays(path, 2)
    if arrays is None:
        return None
    stream, lengths = arrays
    fits = len(lengths) == documents and lengths.sum() == len(stream) and stream.max(initial=0) < vocab_size
    return Tokens(stream=stream, lengths=lengths) if fits else None


def deal_files(
    documents: Sequence[Document], lengths: np.ndarray, islands: int, by_folder: bool = False
) -> list[np.ndarray]:
    """Document indices (ascending) of each island: whole files, the largest first to the emptiest island.

    by_folder: whole top folders instead, in the order of their names if there is one per island.
    """
    owner = owners_of(documents, lengths, islands, by_folder)
    owners = np.array([owner[_unit(document, by_folder)] for document in documents])
    return [np.flatnonzero(owners == island) for island in range(islands)]


def owners_of(documents: Sequence[Document], lengths: np.ndarray, islands: int, by_folder: bool) -> dict[str, int]:
    """The island of each file, or of each top folder."""
    sizes: dict[str, int] = {}
    for document, length in zip(documents, lengths.tolist(), strict=True):
        unit = _unit(document, by_folder)
        sizes[unit] = sizes.get(unit, 0) + length
    if by_folder and len(sizes) == islands:
        return {unit: island for island, unit in enumerate(sorted(sizes))}
    loads = [0] * islands
    owner: dict[str, int] = {}
    for unit in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owner[unit] = loads.index(min(loads))
        loads[owner[unit]] += sizes[unit]
    return owner


def held_by(
    held: Sequence[Document], documents: Sequence[Document], lengths: np.ndarray, islands: int
) -> list[np.ndarray]:
    """Indices of the held-out documents of each island's top folders."""
    owner = owners_of(documents, lengths, islands, True)
    owners = np.array([owner.get(_unit(document, True), islands) for document in held])
    return [np.flatnonzero(owners == island) for island in range(islands)]


def _unit(document: Document, by_folder: bool) -> str:
    return document.file.partition("/")[0] if by_folder else document.file


def select(tokens: Tokens, documents: np.ndarray) -> np.ndarray:
    """[tokens] the stream of these documents alone."""
    ends = np.cumsum(tokens.lengths)
    parts = [tokens.stream[ends[i] - tokens.lengths[i] : ends[i]] for i in documents]
    return np.concatenate(parts) if parts else tokens.stream[:0]
