"""Settings of the data of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lowcomm.data.bpe_tokenizer import TrainedBPE
from lowcomm.data.bytes_tokenizer import Bytes
from lowcomm.data.errors import bad
from lowcomm.data.hf_dataset import HFDataset
from lowcomm.data.python_corpus import PythonCorpus
from lowcomm.data.source import Source
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
    validation_fraction: float = 0.05
    """Part of the files (of the rows, where a file has many) that is held out, chosen by a hash of its name."""
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
        trained = self.sharding == "own" and isinstance(self.tokenizer, TrainedBPE)
        if trained or (self.sharding == "own" and isinstance(self.source, HFDataset) and self.source.streaming):
            what = (
                "a tokenizer trained on each site's own text differs" if trained else "a streamed source is dealt out"
            )
            raise bad(
                "sharding", "own", f"another one: {what}", "use Bytes or HFTokenizer, and text that is not streamed"
            )
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
        if isinstance(self.source, HFDataset) and self.source.streaming:
            raise bad("sharding", "own", "another one, as a streamed source is dealt out", "read it without streaming")
