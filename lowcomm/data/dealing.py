"""One corpus to training and held-out documents of every client, and what a report says about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np

from lowcomm.data.config import DataConfig
from lowcomm.data.errors import bad
from lowcomm.data.partition import Partition
from lowcomm.data.source import Corpus, Document
from lowcomm.data.split import Part, Salt, can_be_parted, parted
from lowcomm.data.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Side:
    """The training or the held-out documents."""

    documents: list[Document]
    owners: np.ndarray | None
    """int64 [documents]: the island of each; None: text does not belong to islands."""

    def kept(self, chosen: np.ndarray) -> Side:
        """Those of some documents: bool [documents]."""
        documents = [d for d, keep in zip(self.documents, chosen.tolist(), strict=True) if keep]
        return replace(self, documents=documents, owners=None if self.owners is None else self.owners[chosen])

    def of(self, island: int) -> np.ndarray:
        """Indices of an island's documents, ascending."""
        assert self.owners is not None
        return np.flatnonzero(self.owners == island)


def unique(corpus: Corpus) -> tuple[Corpus, int]:
    """Each text once, and how many were left out: the first of equal ones stays, a held-out one before all others.

    Equal texts at two clients would be learnt at one and tested at the other.
    """
    seen: set[bytes] = set()
    sides: list[list[Document]] = []
    for documents in (corpus.validation or [], corpus.documents):
        digests = [sha256(d.text).digest() for d in documents]
        kept: list[Document] = []
        for document, digest in zip(documents, digests, strict=True):
            if digest not in seen:
                kept.append(document)
            seen.add(digest)
        sides.append(kept)
    removed = len(corpus.validation or []) + len(corpus.documents) - len(sides[0]) - len(sides[1])
    return replace(corpus, documents=sides[1], validation=sides[0] if corpus.validation is not None else None), removed


def deal(config: DataConfig, partition: Partition, corpus: Corpus, islands: int, seed: int) -> tuple[Side, Side]:
    """(training, held out): first all documents go to clients, then each client holds out some of its own.

    A source's own validation split stays held out. Raises ConfigError for a client that would have only one side.
    """
    documents = [*corpus.documents, *(corpus.validation or [])]
    own_split = corpus.validation is not None
    parts: list[Part] = [*((d, None) for d in corpus.documents), *((None, d) for d in corpus.validation or [])]
    rng = np.random.default_rng([seed, int.from_bytes(b"partition", "big")])
    owners = partition.owners(documents, islands, rng)
    for island in range(islands):
        own = np.flatnonzero(owners == island).tolist()
        if not own_split:
            _hold_out(parts, own, config, "validation", island)
        if config.tuning:
            for i in own:
                parts[i] = (parts[i][0], None)
            _hold_out(parts, [i for i in own if parts[i][0] is not None], config, "tuning", island)
        _check_both(partition, island, [parts[i] for i in own])
    train = [(kept, owner) for (kept, _), owner in zip(parts, owners.tolist(), strict=True) if kept is not None]
    held = [(tail, owner) for (_, tail), owner in zip(parts, owners.tolist(), strict=True) if tail is not None]
    return _side(train), _side(held)


def _side(owned: Sequence[tuple[Document, int]]) -> Side:
    return Side(documents=[d for d, _ in owned], owners=np.array([owner for _, owner in owned], dtype=np.int64))


def _hold_out(parts: list[Part], own: Sequence[int], config: DataConfig, salt: Salt, island: int) -> None:
    """Replaces what is kept of an island's documents by their parts, as in a run that is not federated."""
    mine = [kept for kept in (parts[i][0] for i in own) if kept is not None]
    if not can_be_parted(mine):
        fix = f"client {island} has {len(mine)} documents with one key, too little to cut: fewer islands, or more text"
        raise bad("validation_fraction", config.validation_fraction, "a part of every client's documents", fix)
    for i, part in zip(own, parted(mine, config.validation_fraction, salt), strict=True):
        parts[i] = part


def _check_both(partition: Partition, island: int, parts: Sequence[Part]) -> None:
    trained, held = any(kept is not None for kept, _ in parts), any(tail is not None for _, tail in parts)
    if not trained or not held:
        what = "no held-out row of the source's own validation split" if trained else "no training row"
        raise bad("partition", partition, "training and held-out rows for every client", f"client {island} has {what}")


def statistics(
    config: DataConfig, sides: tuple[Side, Side], tokens: tuple[Tokens, Tokens], islands: int, removed: int
) -> dict[str, Any]:
    """What partition.json holds: rows, tokens and labels of every client."""
    clients: list[dict[str, Any]] = []
    for island in range(islands):
        row: dict[str, Any] = {"client": island}
        for name, side, own in zip(("train", "validation"), sides, tokens, strict=True):
            chosen = side.of(island)
            row[f"{name}_rows"] = len(chosen)
            row[f"{name}_tokens"] = int(own.lengths[chosen].sum())
            row[f"{name}_bytes"] = sum(len(side.documents[i].text) for i in chosen)
            if own.answers is not None:
                mask = np.zeros(len(own.lengths), dtype=bool)
                mask[chosen] = True
                answers = own.kept(mask).answers
                row[f"{name}_answer_tokens"] = int(answers.sum()) if answers is not None else 0
            row[f"{name}_labels"] = dict(sorted(Counter(side.documents[i].group for i in chosen).items()))
        clients.append(row)
    name = config.sharding if config.partition is None else repr(config.partition)
    return {"partition": name, "duplicates_removed": removed, "clients": clients}
