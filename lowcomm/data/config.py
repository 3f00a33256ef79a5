"""Settings of the data of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

from lowcomm.data.bpe_tokenizer import TrainedBPE
from lowcomm.data.bytes_tokenizer import Bytes
from lowcomm.data.chat_date import CHAT_DATE
from lowcomm.data.errors import bad
from lowcomm.data.hf_dataset import HFDataset
from lowcomm.data.partition import Partition
from lowcomm.data.python_corpus import PythonCorpus
from lowcomm.data.source import Source
from lowcomm.data.template import ChatTemplate
from lowcomm.data.tokenizer import TokenizerSpec


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text is read, how it becomes tokens, and how islands share it."""

    source: Source = field(default_factory=PythonCorpus)
    """Where the text comes from."""
    tokenizer: TokenizerSpec = field(default_factory=Bytes)
    """How text becomes tokens."""
    seq_len: int = 128
    """Tokens per sequence."""
    batch_size: int = 8
    """Sequences per micro-batch and island."""
    sharding: Literal["iid", "by_file", "by_folder", "own"] = "iid"
    """How islands share the text: iid deals single sequences at random, by_file whole files, by_folder top folders
    (packages, sites: natural clients). own: sites that keep their data, each island reads all that its source has."""
    partition: Partition | None = None
    """Clients instead of `sharding`: Iid, NaturalId, Dirichlet, Quantity, Pathological or ByLength. Equal texts are
    kept once, and every client holds out some of its own rows."""
    chat_template: ChatTemplate = "tokenizer"
    """How conversations become text: the tokenizer's own template, or ChatML that ends turns with its end-of-text."""
    chat_date: str = CHAT_DATE
    """Date (year-month-day) that a chat template gets for today, the same on every island and after a resume."""
    drop_unanswered: bool = False
    """Leave out, and count, conversations without a token of an answer within seq_len; otherwise they are an error."""
    validation_fraction: float = 0.05
    """Part of the text that is held out: files (rows, where a file has many) by a hash of their name, or, where that is
    far from this share of the bytes, by size, with the tail of the largest one."""
    validation_sequences: int = 128
    """At most this many held-out sequences are evaluated, spread evenly over the held-out text."""
    tuning: bool = False
    """Validate on a part of the training files instead, so that settings are never tuned on the reported set."""
    cache_dir: Path = Path("~/.cache/lowcomm")
    """Directory of trained tokenizers and tokenised text; may be deleted at any time."""

    def check(self, islands: int) -> None:
        """Raises ConfigError for the first field out of range; reads no text."""
        if islands < 1:
            raise bad("islands", islands, "1 or more", "use 1 island for a plain run")
        for name in ("seq_len", "batch_size", "validation_sequences"):
            value = getattr(self, name)
            if value < 1:
                raise bad(name, value, "1 or more", f"use {DataConfig.__dataclass_fields__[name].default}")
        if self.sharding not in ("iid", "by_file", "by_folder", "own"):
            raise bad("sharding", self.sharding, "'iid', 'by_file', 'by_folder' or 'own'", "use 'iid'")
        if self.sharding == "own":
            self._check_own()
        if isinstance(self.source, HFDataset) and self.source.streaming:
            self._check_streamed()
        if self.partition is not None:
            if self.sharding != "iid":
                raise bad("sharding", self.sharding, "'iid', as data.partition is set", "leave one of them out")
            self.partition.check(islands)
        if self.chat_template not in ("tokenizer", "chatml"):
            raise bad("chat_template", self.chat_template, "'tokenizer' or 'chatml'", "use 'tokenizer'")
        try:
            date.fromisoformat(self.chat_date)
        except ValueError:
            raise bad("chat_date", self.chat_date, "a date as year-month-day", f"use {CHAT_DATE}") from None
        if not 0 < self.validation_fraction <= 0.5:
            raise bad("validation_fraction", self.validation_fraction, "above 0 and at most 0.5", "use 0.05")
        if self.cache_dir.expanduser().is_file():
            raise bad("cache_dir", str(self.cache_dir), "a directory", "name a directory, not a file")
        self.source.check()
        self.tokenizer.check()

    def _check_own(self) -> None:
        if isinstance(self.tokenizer, TrainedBPE):
            legal = "another one, as a tokenizer trained on each site's own text differs"
            raise bad("sharding", "own", legal, "use the tokenizer Bytes or HFTokenizer")

    def _check_streamed(self) -> None:
        """Raises ConfigError for what needs all rows at once."""
        fix = "pass --data.source.no-streaming to read all rows first"
        if self.sharding not in ("iid", "by_file"):
            raise bad("sharding", self.sharding, "'iid' or 'by_file' for a dataset that is streamed", fix)
        if self.partition is not None:
            raise bad("partition", self.partition, "None for a dataset that is streamed", f"{fix}, or leave it out")
