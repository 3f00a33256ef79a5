"""Data of sources that fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from lowcomm.data.config import DataConfig
from lowcomm.data.data import Data, Stats
from lowcomm.data.errors import bad
from lowcomm.data.shard import Shard
from lowcomm.data.source import Document
from lowcomm.data.split import split
from lowcomm.data.tokens import Tokens, deal_files, held_by, select, tokenise
from lowcomm.data.windows import WindowShard, window_count


def build_in_memory(config: DataConfig, islands: int, seed: int, cache_dir: Path) -> Data:
    """Reads, splits and tokenises everything; raises ConfigError if an island would have no sequence."""
    corpus = config.source.read(cache_dir)
    train, held = split(corpus, config.validation_fraction, config.tuning)
    tokenizer = config.tokenizer.load(lambda: (document.text for document in train), cache_dir)
    tokens = tokenise(train, tokenizer, cache_dir)
    validation = tokenise(held, tokenizer, cache_dir)
    owned = None
    own_text = config.sharding == "own"
    if config.sharding in ("by_file", "by_folder"):
        owned = deal_files(train, tokens.lengths, islands, config.sharding == "by_folder")
        _check_files(config, tokens, owned)
    else:
        _check_windows(config, len(tokens.stream), 1 if own_text else islands)
    identity = {"seed": seed, "islands": islands, "sharding": config.sharding}
    # Every shard has the same digest; computed once, since one process may hold many islands.
    identity["text_sha256"] = sha256(tokens.stream.data).hexdigest()

    def make_shard(island: int) -> Shard:
        whole = owned is None and not own_text
        return WindowShard(
            tokens.stream if owned is None else select(tokens, owned[island]),
            seq_len=config.seq_len,
            batch_size=config.batch_size,
            part=island if whole else 0,
            parts=islands if whole else 1,
            seeds=(seed,) if whole else (seed, island),
            identity={**identity, "island": island},
        )

    own = held_by(held, train, tokens.lengths, islands) if config.sharding == "by_folder" else []
    held_here = [validation.stream] * islands if own_text else [select(validation, documents) for documents in own]
    stats: Stats = {**corpus.stats, **_side("train", train, tokens), **_side("validation", held, validation)}
    return Data(
        config,
        islands=islands,
        tokenizer=tokenizer,
        validation=validation.stream,
        stats=stats,
        make_shard=make_shard,
        own_validation=held_here,
    )


def _side(name: str, documents: Sequence[Document], tokens: Tokens) -> Stats:
    return {
        f"{name}_documents": len(documents),
        f"{name}_tokens": len(tokens.stream),
        f"{name}_bytes": sum(len(document.text) for document in documents),
    }


def _check_windows(config: DataConfig, tokens: int, islands: int) -> None:
    if window_count(tokens, config.seq_len) < islands:
        most = (tokens - 1) // islands
        legal = f"at most {most}, {islands} islands share {tokens} training tokens" if most else "nothing"
        raise bad("seq_len", config.seq_len, legal, "shorten the sequences, use fewer islands or add text")


def _check_files(config: DataConfig, tokens: Tokens, owned: list[np.ndarray]) -> None:
    for island, documents in enumerate(owned):
        total = int(tokens.lengths[documents].sum())
        if total == 0:
            raise bad(
                "sharding",
                config.sharding,
                f"{config.sharding} with at least one training file or folder per island",
                f"island {island} of {len(owned)} gets no file: use data.sharding iid, fewer islands or more files",
            )
        if window_count(total, config.seq_len) == 0:
            raise bad(
                "seq_len",
                config.seq_len,
                f"at most {total - 1}, the files of island {island} have {total} tokens",
                "shorten the sequences, use data.sharding iid, fewer islands or more text",
            )
