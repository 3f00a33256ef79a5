"""Fine-tuning without a backward pass: peers exchange bytes, not gradients, and regenerate what they stand for.

The clients and the tiny pretrained base are those of fed_lora.py; all parameters are tuned.
"""

from __future__ import annotations

from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig, Packages
from lowcomm.island import InnerConfig
from lowcomm.local import Baffle, Estimate, OneByte
from lowcomm.model import LoRA, ModelConfig
from lowcomm.schedule import EveryStep
from lowcomm.smollm2 import SmolLM2, SmolLM2Tokens
from lowcomm.tiny_base import TinyBase
from lowcomm.zeroth_order import ZerothOrder

CLIENTS = ("numpy", "rich", "torch", "transformers")


def smoke() -> RunConfig:
    """Just One Byte on four clients, 200 steps: seconds on a CPU, after the base is trained once."""
    return _tiny("smoke", OneByte(), lr=5e-4, steps=200)


def one_byte() -> RunConfig:
    """Just One Byte: one byte per client and step, 800 steps."""
    return _tiny("one-byte", OneByte(), lr=5e-4, steps=800)


def baffle() -> RunConfig:
    """BAFFLE: 20 forward differences per step, 100 steps."""
    return _tiny("baffle", Baffle(probes=20), lr=3e-3, steps=100)


def smollm2() -> RunConfig:
    """Just One Byte on SmolLM2-135M-Instruct, LoRA r = 8 on q and v, four clients: minutes on two cores."""
    return RunConfig(
        name="zeroth-order-smollm2",
        islands=4,
        steps=32,
        transport="simulated",
        data=DataConfig(
            source=Packages(names=CLIENTS, max_bytes_each=200_000),
            tokenizer=SmolLM2Tokens(),
            sharding="by_folder",
            seq_len=128,
            batch_size=4,
            validation_sequences=16,
        ),
        model=ModelConfig(origin=SmolLM2(), tuning=LoRA(rank=8, alpha=16.0)),
        inner=InnerConfig(optimizer=ZerothOrder(lr=1e-5), clip_norm=None, warmup_fraction=0.0),
        sync=SyncConfig(every=8, schedule=EveryStep()),
        eval=EvalConfig(clients=True),
        checkpoint=CheckpointConfig(every_rounds=1),
        log_every=4,
    )


def _tiny(name: str, estimate: Estimate, lr: float, steps: int) -> RunConfig:
    return RunConfig(
        name=f"zeroth-order-{name}",
        islands=4,
        steps=steps,
        threads=1,  # a second one is of no use to so small a model
        data=DataConfig(
            source=Packages(names=CLIENTS, max_bytes_each=200_000),
            sharding="by_folder",
            seq_len=64,
            batch_size=16,
            validation_sequences=64,
        ),
        model=ModelConfig(origin=TinyBase()),
        inner=InnerConfig(optimizer=ZerothOrder(lr=lr, estimate=estimate), clip_norm=None, warmup_fraction=0.0),
        sync=SyncConfig(every=25, schedule=EveryStep()),
        eval=EvalConfig(clients=True),
        checkpoint=CheckpointConfig(every_rounds=4),
    )
