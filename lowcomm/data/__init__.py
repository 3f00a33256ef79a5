"""Text sources, tokenizers, and how islands share the text."""

from __future__ import annotations

from lowcomm.data.bpe_tokenizer import TrainedBPE
from lowcomm.data.build import build_data
from lowcomm.data.bytes_tokenizer import Bytes
from lowcomm.data.chat import ChatFormat, Instructions, Messages, PromptCompletion
from lowcomm.data.config import DataConfig
from lowcomm.data.csv_files import Csv
from lowcomm.data.data import Data
from lowcomm.data.docstrings import Docstrings
from lowcomm.data.hf_dataset import HFDataset
from lowcomm.data.hf_tokenizer import HFTokenizer
from lowcomm.data.json_lines import JsonLines
from lowcomm.data.packages import Packages
from lowcomm.data.parquet import Parquet
from lowcomm.data.partition import ByLength, Dirichlet, Iid, NaturalId, Partition, Pathological, Quantity
from lowcomm.data.python_corpus import PythonCorpus
from lowcomm.data.shard import Shard
from lowcomm.data.source import Source
from lowcomm.data.text_files import TextFiles
from lowcomm.data.tokenizer import TokenizerSpec

__all__ = [
    "Source",
    "PythonCorpus",
    "Packages",
    "Docstrings",
    "TextFiles",
    "JsonLines",
    "Csv",
    "Parquet",
    "HFDataset",
    "TokenizerSpec",
    "Bytes",
    "HFTokenizer",
    "TrainedBPE",
    "ChatFormat",
    "Messages",
    "PromptCompletion",
    "Instructions",
    "Partition",
    "Iid",
    "NaturalId",
    "Dirichlet",
    "Quantity",
    "Pathological",
    "ByLength",
    "DataConfig",
    "Data",
    "Shard",
    "build_data",
]
