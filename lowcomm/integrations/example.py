"""Text, model and last line of the scripts under recipes/integrations/: seconds on a CPU."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor

from lowcomm.data import Data, DataConfig, PythonCorpus, TextFiles, build_data
from lowcomm.model import ModelConfig, build_model
from lowcomm.state.digest import sha256_weights
from lowcomm.state.state import SyncState

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEQ_LEN = 64
BATCH_SIZE = 8


def options(description: str | None) -> argparse.ArgumentParser:
    """The flags that all of the scripts have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=64, help="inner steps of each island")
    parser.add_argument("--every", type=int, default=16, help="inner steps per round")
    parser.add_argument("--text", default=None, help="glob of text files; without it, the Python standard library")
    parser.add_argument("--output", type=Path, default=Path("runs/integrations"), help="directory of what is written")
    return parser


def load_text(pattern: str | None) -> Data:
    """Byte tokens of the text; every rank reads the same."""
    source = PythonCorpus() if pattern is None else TextFiles(glob=pattern)
    return build_data(DataConfig(source=source, seq_len=SEQ_LEN, batch_size=BATCH_SIZE), islands=1, seed=0)


def rows(data: Data, count: int) -> list[dict[str, Tensor]]:
    """`count` training examples as transformers wants them: int64 input_ids and labels, [SEQ_LEN] each."""
    shard, found = data.shard(0), list[dict[str, Tensor]]()
    while len(found) < count:
        inputs, _ = shard.next_batch()
        found += [{"input_ids": row, "labels": row} for row in inputs]
    return found[:count]


def nano(data: Data) -> PreTrainedModel:
    """A 0.12M-parameter Llama, the same on every rank."""
    config = ModelConfig(preset="nano")
    made = build_model(config, vocab_size=data.vocab_size, max_tokens=SEQ_LEN, seed=0, eos_id=data.eos_id)
    return cast("PreTrainedModel", made)


def report(state: SyncState) -> None:
    """One line of JSON per rank: all islands must show the same digest."""
    line = {
        "island": state.transport.local[0],
        "islands": state.transport.islands,
        "steps": state.step,
        "rounds": state.round,
        "bytes_sent": state.transport.sent_bytes[0],
        "weights_sha256": sha256_weights({n: p.detach() for n, p in state.replicas[0].params.items()}),
    }
    print(json.dumps(line), flush=True)
