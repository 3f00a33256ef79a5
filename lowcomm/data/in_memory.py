"""Data of sources that fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from lowcomm.data.config import DataConfig
from lowcomm.data.conversations import ChatWindows, learnable, tokenise_chats
from lowcomm.data.data import Data, Stats
from lowcomm.data.dealing import Side, deal, statistics, unique
from lowcomm.data.errors import bad
from lowcomm.data.shard import Shard, Windows
from lowcomm.data.source import Corpus
from lowcomm.data.split import split
from lowcomm.data.template import Template
from lowcomm.data.tokenizer import Tokenizer
from lowcomm.data.tokens import Tokens, deal_files, held_by, select, tokenise
from lowcomm.data.windows import TextWindows, WindowShard, window_count


@dataclass(frozen=True, kw_only=True)
class Read:
    """Both sides as tokens."""

    train: Side
    held: Side
    train_tokens: Tokens
    held_tokens: Tokens
    template: Template | None
    """None: plain text."""
    tokenizer: Tokenizer
    stats: Stats
    removed: int
    """Documents left out because another has the same text."""


def build_in_memory(config: DataConfig, islands: int, seed: int, cache_dir: Path) -> Data:
    """Reads, splits and tokenises everything; raises ConfigError if an island would have no sequence."""
    read = _read(config, config.source.read(cache_dir), islands, seed, cache_dir)
    tokens, own_text = read.train_tokens, config.sharding == "own"
    if read.train.owners is None:
        _check_windows(config, _windows(config, read, tokens, None), 1 if own_text else islands)
    else:
        _check_owned(config, read, islands)
    identity = {"seed": seed, "islands": islands, "sharding": config.sharding}
    if config.partition is not None:
        identity["partition"] = repr(config.partition)
    # Every shard has the same digest; computed once, since one process may hold many islands.
    identity["text_sha256"] = sha256(tokens.stream.data).hexdigest()

    def make_shard(island: int) -> Shard:
        whole = read.train.owners is None and not own_text
        return WindowShard(
            _windows(config, read, tokens, None if read.train.owners is None else read.train.of(island)),
            seq_len=config.seq_len,
            batch_size=config.batch_size,
            part=island if whole else 0,
            parts=islands if whole else 1,
            seeds=(seed,) if whole else (seed, island),
            identity={**identity, "island": island},
        )

    owned = read.held.owners is not None
    sides = _side("train", read.train, tokens) | _side("validation", read.held, read.held_tokens)
    return Data(
        config,
        islands=islands,
        tokenizer=read.tokenizer,
        validation=_windows(config, read, read.held_tokens, None),
        stats={**read.stats, **sides},
        make_shard=make_shard,
        own_validation=[
            _windows(config, read, read.held_tokens, read.held.of(k) if owned else None)
            for k in range(islands if owned or own_text else 0)
        ],
        partition=statistics(config, (read.train, read.held), (tokens, read.held_tokens), islands, read.removed)
        if owned
        else None,
        chat_template=read.template.source if read.template is not None else None,
    )


def _read(config: DataConfig, corpus: Corpus, islands: int, seed: int, cache_dir: Path) -> Read:
    chats, removed = any(d.messages for d in corpus.documents), 0
    if chats or config.partition is not None:
        corpus, removed = unique(corpus)
    if config.partition is not None:
        train, held = deal(config, config.partition, corpus, islands, seed)
    else:
        documents = split(corpus, config.validation_fraction, config.tuning, config.sharding == "by_folder")
        train, held = (Side(documents=side, owners=None) for side in documents)
    tokenizer = config.tokenizer.load(lambda: (document.text for document in train.documents), cache_dir)
    template = Template(tokenizer, config.chat_template, config.chat_date) if chats else None
    stats: Stats = dict(corpus.stats)
    tokens: list[Tokens] = []
    sides: list[Side] = []
    for side in (train, held):
        if template is None:
            found = tokenise(side.documents, tokenizer, cache_dir)
        else:
            found = tokenise_chats(side.documents, template, tokenizer.vocab_size)
            kept = learnable(side.documents, found, config.seq_len, config.drop_unanswered)
            stats["unanswered_dropped"] = int(stats.get("unanswered_dropped", 0)) + int((~kept).sum())
            found, side = found.kept(kept), side.kept(kept)
        tokens.append(found)
        sides.append(side)
    train, held = _by_file(config, sides[0], sides[1], tokens[0], islands)
    if chats or config.partition is not None:
        stats["duplicates_removed"] = removed
    return Read(
        train=train,
        held=held,
        train_tokens=tokens[0],
        held_tokens=tokens[1],
        template=template,
        tokenizer=tokenizer,
        stats=stats,
        removed=removed,
    )


def _by_file(config: DataConfig, train: Side, held: Side, tokens: Tokens, islands: int) -> tuple[Side, Side]:
    """With the owners of whole files or folders, where data.sharding asks for it."""
    if config.partition is not None or config.sharding in ("iid", "own"):
        return train, held
    folders = config.sharding == "by_folder"
    dealt = deal_files(train.documents, tokens.lengths, islands, folders)
    train = Side(documents=train.documents, owners=_owners(dealt, len(train.documents)))
    if folders:
        own = held_by(held.documents, train.documents, tokens.lengths, islands)
        held = Side(documents=held.documents, owners=_owners(own, len(held.documents)))
    return train, held


def _owners(dealt: Sequence[np.ndarray], documents: int) -> np.ndarray:
    owners = np.full(documents, len(dealt), dtype=np.int64)  # held-out text of a folder that nobody trains on
    for island, own in enumerate(dealt):
        owners[own] = island
    return owners


def _windows(config: DataConfig, read: Read, tokens: Tokens, documents: np.ndarray | None) -> Windows:
    """Of these documents; None: of all."""
    if read.template is not None:
        chosen = np.arange(len(tokens.lengths)) if documents is None else documents
        return ChatWindows(tokens, chosen, config.seq_len, read.tokenizer.end_of_text_id)
    return TextWindows(tokens.stream if documents is None else select(tokens, documents), config.seq_len)


def _side(name: str, side: Side, tokens: Tokens) -> Stats:
    found: Stats = {
        f"{name}_documents": len(side.documents),
        f"{name}_tokens": len(tokens.stream),
        f"{name}_bytes": sum(len(document.text) for document in side.documents),
    }
    if tokens.answers is not None:
        found[f"{name}_answer_tokens"] = int(tokens.answers.sum())
    return found


def _check_windows(config: DataConfig, windows: Windows, islands: int) -> None:
    if windows.total >= islands:
        return
    if isinstance(windows, ChatWindows):
        raise bad("source", f"{windows.total} conversations", f"one or more for each of {islands} islands", "add text")
    most = (windows.tokens - 1) // islands
    legal = f"at most {most}, {islands} islands share {windows.tokens} training tokens" if most else "nothing"
    raise bad("seq_len", config.seq_len, legal, "shorten the sequences, use fewer islands or add text")


def _check_owned(config: DataConfig, read: Read, islands: int) -> None:
    for island in range(islands):
        documents = read.train.of(island)
        total = int(read.train_tokens.lengths[documents].sum())
        if total == 0:
            by = config.sharding if config.partition is None else type(config.partition).__name__
            raise bad(
                "sharding" if config.partition is None else "partition",
                by,
                f"{by} with at least one training file or folder per island",
                f"island {island} of {islands} gets no file: use data.sharding iid, fewer islands or more files",
            )
        if read.template is None and window_count(total, config.seq_len) == 0:
            raise bad(
                "seq_len",
                config.seq_len,
                f"at most {total - 1}, the files of island {island} have {total} tokens",
                "shorten the sequences, use data.sharding iid, fewer islands or more text",
            )
