"""Islands of unequal speed that never wait for each other, over an ordered log: FedBuff and other modes.

`smoke` and the modes below it take seconds on a CPU, four simulated islands at 1, 1, 0.6 and 0.3 of the speed;
`--steps` and `--data` make more of them. Real processes take `--sync.exchange.log DIR` and no speeds.
"""

from __future__ import annotations

from pathlib import Path

from lowcomm.arrival import (
    AEdit,
    Anarchic,
    AnarchicSilos,
    ArrivalRule,
    BackupWorkers,
    Decoupled,
    FedBuff,
    FedCompass,
    Timed,
    TokenBatch,
    TurnStale,
)
from lowcomm.codec import ErrorFeedback, Int4
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.exchange.buffered import Buffered
from lowcomm.model import ModelConfig
from lowcomm.outer import DelayedNesterov, HeLoCo, Nesterov, Outer

SPEEDS = (1.0, 1.0, 0.6, 0.3)
"""Inner steps of each simulated island per tick."""


def smoke() -> RunConfig:
    """Four simulated islands, the slowest at 0.3 of the speed, 2 contributions per version: CPU, seconds."""
    return RunConfig(
        name="asynchronous-smoke",
        steps=96,
        islands=4,
        transport="simulated",
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(
            every=16,
            outer=Nesterov(lr=0.5, momentum=0.3),
            codec=ErrorFeedback(codec=Int4()),
            exchange=Buffered(size=2, speeds=SPEEDS),
        ),
        checkpoint=CheckpointConfig(every_rounds=4),
    )


def timed() -> RunConfig:
    """FedFix (arXiv 2206.10189): a version every 16 ticks, islands that come rarely count for more."""
    return _mode("timed", Timed(every_s=16.0), Nesterov(lr=0.7, momentum=0.3))


def unbiased() -> RunConfig:
    """Asynchronous FedAvg with unbiased weights (arXiv 2206.10189): each contribution makes a version."""
    return _mode("unbiased", FedBuff(size=1, weights="unbiased"), DelayedNesterov(lr=0.7, momentum=0.3))


def decoupled() -> RunConfig:
    """Decoupled DiLoCo (arXiv 2604.21428): a quorum of half, and a grace window that costs nobody compute."""
    return _mode("decoupled", Decoupled(), Nesterov(lr=0.7, momentum=0.3))


def heloco() -> RunConfig:
    """HeLoCo (arXiv 2606.00271): stale Deltas are turned to the outer momentum."""
    return _mode("heloco", FedBuff(size=2, turn=TurnStale()), HeLoCo(lr=0.5, momentum=0.6))


def delayed_nesterov() -> RunConfig:
    """Delayed Nesterov (arXiv 2401.09135): each contribution moves the weights, every fourth the momentum."""
    return _mode("delayed-nesterov", FedBuff(size=1), DelayedNesterov(lr=0.7, momentum=0.6))


def token_batch() -> RunConfig:
    """DeDLOC's global batch (arXiv 2106.10207): a round ends by tokens, fast islands train more of them."""
    tokens = round(sum(SPEEDS) * 16) * 64 * 8
    return _mode("token-batch", TokenBatch(tokens=tokens), Nesterov(lr=0.7, momentum=0.6))


def anarchic() -> RunConfig:
    """Anarchic FL across devices (arXiv 2108.09875): every second contribution a version, weighed per inner step."""
    return _mode("anarchic", Anarchic(size=2, nominal_steps=16), Nesterov(lr=0.5, momentum=0.3))


def anarchic_silos() -> RunConfig:
    """Anarchic FL across silos (arXiv 2108.09875): every version counts the latest contribution of every island."""
    return _mode("anarchic-silos", AnarchicSilos(nominal_steps=16), Nesterov(lr=0.5, momentum=0.3))


def a_edit() -> RunConfig:
    """A-EDiT (arXiv 2412.07210): norms out of the ordinary are left out, the others weigh by a softmax."""
    return _mode("a-edit", AEdit(size=2), Nesterov(lr=0.5, momentum=0.3))


def backup_workers() -> RunConfig:
    """Dynamic backup workers (arXiv 2004.14696): each version waits for as many islands as gain most per second."""
    return _mode("backup-workers", BackupWorkers(), Nesterov(lr=0.7, momentum=0.6))


def compass() -> RunConfig:
    """FedCompass (arXiv 2309.14675): steps by speed, so that groups of islands arrive together and make versions."""
    return _mode("compass", FedCompass(least_steps=4, most_steps=32), Nesterov(lr=0.7, momentum=0.6))


def even() -> RunConfig:
    """HALoS's steps by speed (arXiv 2506.04531): all islands contribute equally often, none grows stale."""
    return _mode("even", FedBuff(size=4, even=True), Nesterov(lr=0.7, momentum=0.6))


def _mode(name: str, rule: ArrivalRule, outer: Outer) -> RunConfig:
    """`smoke` with another mode; islands train on from what they have contributed."""
    base = smoke()
    return RunConfig(
        name=f"asynchronous-{name}",
        steps=base.steps,
        islands=base.islands,
        transport=base.transport,
        data=base.data,
        model=base.model,
        sync=SyncConfig(
            every=base.sync.every,
            outer=outer,
            codec=base.sync.codec,
            exchange=Buffered(rule=rule, goes_on="own", speeds=SPEEDS),
        ),
        checkpoint=base.checkpoint,
    )


def fedbuff() -> RunConfig:
    """FedBuff with the model and steps of diloco.py:pretrain_cpu; the islands share --sync.exchange.log DIR."""
    return RunConfig(
        name="fedbuff",
        steps=2560,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=256),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(
            every=32,
            outer=Nesterov(lr=0.5, momentum=0.3),
            codec=ErrorFeedback(codec=Int4()),
            exchange=Buffered(size=4, log=Path("runs/fedbuff-log")),
        ),
        eval=EvalConfig(every=256),
        checkpoint=CheckpointConfig(every_rounds=20),
    )
