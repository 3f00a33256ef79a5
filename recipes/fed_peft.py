"""FedPEFT: what to tune when every tuned parameter has to travel (Sun et al., arXiv 2210.01708).

Six ways of tuning the same tiny base on four clients, one installed package each; the plain mean merges them. In
benchmarks/fed_peft.py each of them also meets clients that are alike and differential privacy.
"""

from __future__ import annotations

from lowcomm.aggregate import Mean
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig, Packages
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import IA3, BitFit, Full, Heads, LoRA, ModelConfig, Prompt
from lowcomm.model.tuning import Tuning
from lowcomm.outer import SGD
from lowcomm.tiny_base import TinyBase

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def smoke() -> RunConfig:
    """LoRA: seconds on a CPU, after the base is trained once."""
    return lora()


def full() -> RunConfig:
    """Everything is tuned and sent, for comparison."""
    return _run("full", Full(), lr=1e-3)


def lora() -> RunConfig:
    """LoRA, rank 8 on every linear map."""
    return _run("lora", LoRA(rank=8, targets=ALL), lr=3e-3)


def dora() -> RunConfig:
    """DoRA: LoRA and the magnitude of each row."""
    return _run("dora", LoRA(rank=8, targets=ALL, dora=True), lr=3e-3)


def ia3() -> RunConfig:
    """IA3: scales of keys, values and the feed-forward."""
    return _run("ia3", IA3(), lr=3e-2)


def prompt() -> RunConfig:
    """Prompt tuning: 16 learnt vectors before every sequence."""
    return _run("prompt", Prompt(tokens=16), lr=3e-2)


def heads() -> RunConfig:
    """The output layer, which is the embedding as well."""
    return _run("heads", Heads(), lr=1e-3)


def bitfit() -> RunConfig:
    """BitFit for a Llama, which has no biases: the scales of its norms."""
    return _run("bitfit", BitFit(norms=True), lr=3e-2)


def _run(name: str, tuning: Tuning, lr: float) -> RunConfig:
    return RunConfig(
        name=f"fed-peft-{name}",
        islands=4,
        steps=96,
        threads=1,  # a second one is of no use to so small a model
        data=DataConfig(
            source=Packages(names=("numpy", "rich", "torch", "transformers"), max_bytes_each=200_000),
            sharding="by_folder",
            seq_len=64,
            batch_size=8,
            validation_sequences=64,
        ),
        model=ModelConfig(origin=TinyBase(), tuning=tuning),
        inner=InnerConfig(optimizer=AdamW(lr=lr, weight_decay=0.0)),
        sync=SyncConfig(every=16, outer=SGD(lr=1.0), aggregator=Mean(by="uniform")),
        eval=EvalConfig(clients=True),
        checkpoint=CheckpointConfig(every_rounds=2),
    )
