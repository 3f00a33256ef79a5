"""Data of a Hugging Face dataset that is read while training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowcomm.data.chat_stream import ChatStreamShard, windows_of
from lowcomm.data.config import DataConfig
from lowcomm.data.conversations import learnable, tokenise_chats
from lowcomm.data.data import Data, Stats
from lowcomm.data.errors import bad, need, one_line
from lowcomm.data.hf_dataset import HFDataset
from lowcomm.data.row_reader import IslandRows
from lowcomm.data.shard import Shard
from lowcomm.data.source import Document
from lowcomm.data.split import Salt, is_held_out
from lowcomm.data.stream import StreamShard
from lowcomm.data.template import Template
from lowcomm.data.tokenizer import Tokenizer
from lowcomm.data.tokens import Tokens
from lowcomm.data.windows import TextWindows, Windows
from lowcomm.types import ConfigError

if TYPE_CHECKING:
    from datasets import IterableDataset

Keep = Callable[[bytes], bool]


def build_streamed(config: DataConfig, source: HFDataset, islands: int, cache_dir: Path) -> Data:
    """Reads the head of the stream for the validation windows; training rows are read by the shards."""
    dataset = source.open(source.split)
    if config.sharding == "by_file" and dataset.num_shards % islands:
        raise bad(
            "sharding",
            "by_file",
            f"by_file with islands that divide the dataset's {dataset.num_shards} files",
            f"change islands ({islands}) or use data.sharding iid",
        )
    in_training, in_validation = _roles(config, source)
    texts = (d.text for d in _documents(source, source.split) if in_training(d.key))
    tokenizer = config.tokenizer.load(lambda: texts, cache_dir)
    template = None if source.chat is None else Template(tokenizer, config.chat_template, config.chat_date)
    windows, validation_bytes = _validation(config, source, in_validation, tokenizer, template)
    stats: Stats = {
        "files": dataset.num_shards,
        "files_skipped_undecodable": 0,
        "files_duplicate": 0,
        "train_tokens": "streamed",
        "train_bytes": "streamed",
        "validation_tokens": windows.tokens,
        "validation_bytes": validation_bytes,
    }
    return Data(
        config,
        islands=islands,
        tokenizer=tokenizer,
        validation=windows,
        stats=stats,
        make_shard=lambda island: _shard(config, source, in_training, tokenizer, template, island, islands),
        chat_template=template.source if template is not None else None,
    )


def _shard(
    config: DataConfig,
    source: HFDataset,
    in_training: Keep,
    tokenizer: Tokenizer,
    template: Template | None,
    island: int,
    islands: int,
) -> Shard:
    rows = IslandRows(
        open=lambda: _part(source.open(source.split), island, islands),
        document=lambda place, row: source.row("", place, row),
        keep=in_training,
        place=lambda number: source.place(source.split, number, island, islands),
        skip_bad=source.skip_bad_rows,
    )
    identity = _identity(config, source, tokenizer, island, islands)
    if template is None:
        return StreamShard(
            rows, tokenizer=tokenizer, seq_len=config.seq_len, batch_size=config.batch_size, identity=identity
        )
    return ChatStreamShard(
        rows,
        template=template,
        drop_unanswered=config.drop_unanswered,
        tokenizer=tokenizer,
        seq_len=config.seq_len,
        batch_size=config.batch_size,
        identity={**identity, "template": sha256(f"{template.source} {config.chat_date}".encode()).hexdigest()},
    )


def _identity(
    config: DataConfig, source: HFDataset, tokenizer: Tokenizer, island: int, islands: int
) -> dict[str, int | str]:
    return {
        "island": island,
        "islands": islands,
        "dataset_name": f"{source.name} {source.subset} {source.split} {source.chat or source.column}",
        "held_out": f"{source.validation_split} {config.validation_fraction} {config.tuning}",
        "tokenizer": tokenizer.key or type(tokenizer).__name__,
    }


def _part(dataset: IterableDataset, island: int, islands: int) -> IterableDataset:
    distributed = need("datasets.distributed", "data")
    return distributed.split_dataset_by_node(dataset, rank=island, world_size=islands)


def _roles(config: DataConfig, source: HFDataset) -> tuple[Keep, Keep]:
    """(is a training row, is a validation row) by the key of a document."""

    def held(key: bytes, salt: Salt) -> bool:
        return is_held_out(key, config.validation_fraction, salt)

    def reported(key: bytes) -> bool:
        return source.validation_split is None and held(key, "validation")

    def tuned(key: bytes) -> bool:
        return not reported(key) and held(key, "tuning")

    if config.tuning:
        return lambda key: not reported(key) and not tuned(key), tuned
    if source.validation_split is not None:
        return lambda key: True, lambda key: True
    return lambda key: not reported(key), reported


def _documents(source: HFDataset, split: str) -> Iterator[Document]:
    """Raises ConfigError for a row that cannot be read."""
    number = 0
    try:
        for number, row in enumerate(source.open(split), start=1):
            try:
                document = source.row(split, f"{source.name} {split} row {number}", row)
            except ConfigError:
                if source.skip_bad_rows:
                    continue
                document = source.row(split, source.place(split, number), row)  # the same error, with the file
            if document:
                yield document
    except ConfigError:
        raise
    except Exception as error:  # broken files and lost connections, of many kinds
        raise ConfigError(
            f"data.source: reading {source.place(split, number + 1)} failed ({type(error).__name__}: "
            f"{one_line(error)}); legal: readable rows; fix: repair the files or the connection"
        ) from error


def _validation(
    config: DataConfig, source: HFDataset, in_validation: Keep, tokenizer: Tokenizer, template: Template | None
) -> tuple[Windows, int]:
    """Windows of the first held-out documents, as many as the validation sequences need, and their bytes of text."""
    split = source.split if config.tuning or source.validation_split is None else source.validation_split
    needed = config.validation_sequences * (1 if template is not None else config.seq_len) + (template is None)
    texts: list[np.ndarray] = []
    chats: list[Tokens] = []
    found = size_bytes = 0
    for document in _documents(source, split):
        if found >= needed:
            break
        if not in_validation(document.key):
            continue
        if template is None:
            texts += tokenizer.encode([document.text])
            found += len(texts[-1])
        else:
            chat = tokenise_chats([document], template, tokenizer.vocab_size)
            if not learnable([document], chat, config.seq_len, config.drop_unanswered).all():
                continue
            chats.append(chat)
            found += 1
        size_bytes += len(document.text)
    if not found:
        raise bad(
            "validation_fraction",
            config.validation_fraction,
            f"a part that holds at least one row of {source.name} {split}",
            "raise it, or name data.source.validation_split",
        )
    if template is not None:
        return windows_of(chats, config.seq_len, tokenizer.end_of_text_id), size_bytes
    return TextWindows(np.concatenate(texts), config.seq_len), size_bytes
