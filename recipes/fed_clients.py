"""Clients that differ: sampled ones, unequal work, drift that is held back, secure sums.

Federated LoRA on a tiny pretrained model as in fed_lora.py; here the rule is the plain mean and the clients vary.
"""

from __future__ import annotations

from dataclasses import replace

from lowcomm.aggregate import Mean
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig, Packages
from lowcomm.island import AdamW, InnerConfig
from lowcomm.local import FedProx, Scaffold
from lowcomm.model import LoRA, ModelConfig
from lowcomm.outer import SGD, HeavyBall
from lowcomm.sampling import FixedSize, Poisson
from lowcomm.secure import SecureSum
from lowcomm.tiny_base import TinyBase

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EVERY = 16
PLAIN = SyncConfig(every=EVERY, outer=SGD(lr=1.0), aggregator=Mean())


def smoke() -> RunConfig:
    """Two of four clients train in each round, drawn anew: seconds on a CPU, after the base is trained once."""
    return _run("sampled", replace(PLAIN, sampling=FixedSize(count=2)))


def poisson() -> RunConfig:
    """Each client takes part in a round with probability 1/2; a round without any commits nothing."""
    return _run("poisson", replace(PLAIN, sampling=Poisson(rate=0.5)))


def uneven() -> RunConfig:
    """Slow clients take fewer inner steps per round; one of many tokens counts as much as 4096 at most."""
    weights = Mean(by="bounded", most_tokens=4096)
    return _run("uneven", replace(PLAIN, local_steps=(EVERY, EVERY, 8, 4), aggregator=weights))


def fedprox() -> RunConfig:
    """FedProx: a spring to the global weights holds clients back that drift."""
    return _run("fedprox", replace(PLAIN, objective=FedProx(mu=0.01)))


def scaffold() -> RunConfig:
    """SCAFFOLD: control variates take the drift out of the gradients, for a second sum per round."""
    return _run("scaffold", replace(PLAIN, objective=Scaffold()))


def fedavgm() -> RunConfig:
    """FedAvg-M: heavy-ball momentum on the server's step."""
    return _run("fedavgm", replace(PLAIN, outer=HeavyBall(lr=0.5, momentum=0.5)))


def secure() -> RunConfig:
    """Secure aggregation: what a client sends looks random, only the sum can be read (needs cryptography)."""
    return _run("secure", replace(PLAIN, secure=SecureSum(), aggregator=Mean(by="uniform")))


def _run(name: str, sync: SyncConfig) -> RunConfig:
    return RunConfig(
        name=f"fed-clients-{name}",
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
        model=ModelConfig(origin=TinyBase(), tuning=LoRA(rank=8, targets=ALL)),
        inner=InnerConfig(optimizer=AdamW(lr=3e-3, weight_decay=0.0)),
        sync=sync,
        eval=EvalConfig(clients=True),
        checkpoint=CheckpointConfig(every_rounds=2),
    )
