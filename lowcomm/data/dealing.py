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
from lowcomm.data.split import hold_out
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
    held = np.arange(len(documents)) >= len(corpus.documents)
    rng = np.random.default_rng([seed, int.from_bytes(b"partition", "big")])
    owners = partition.owners(documents, islands, rng)
    used = np.ones(len(documents), dtype=bool)
    for island in range(islands):
        if corpus.validation is None:
            own = np.flatnonzero(owners == island)
            held[own] = _held_out(documents, own, config, "validation", island)
        if config.tuning:
            used[(owners == island) & held] = False
            own = np.flatnonzero((owners == island) & ~held)
            held[own] = _held_out(documents, own, config, "tuning", island)
        _check_both(partition, island, held[(owners == island) & used])
    train = Side(documents=documents, owners=owners).kept(used & ~held)
    return train, Side(documents=documents, owners=owners).kept(used & held)


def _held_out(documents: Sequence[Document], own: np.ndarray, config: DataConfig, salt: Any, island: int) -> np.ndarray:
    """bool [own]: chosen by the hash of each document's key, as in a run that is not federated."""
    mine = [documents[i] for i in own]
    if len({d.key for d in mine}) < 2:
        fix = f"client {island} has {len(mine)} documents with one key: fewer islands, or more text"
        raise bad("validation_fraction", config.validation_fraction, "a part of every client's documents", fix)
    _, held = hold_out(mine, config.validation_fraction, salt)
    keys = {d.key for d in held}
    return np.array([d.key in keys for d in mine])


def _check_both(partition: Partition, island: int, held: np.ndarray) -> None:
    if held.all() or not held.any():
        what = "no training row" if held.all() else "no held-out row of the source's own validation split"
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
