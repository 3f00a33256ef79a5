"""Compressed pseudo-gradients: DiLoCo's rounds with fewer bytes in each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from lowcomm.codec import (
    Codec,
    DctTopK,
    ErrorFeedback,
    FedZip,
    Fp8,
    Int4,
    Int8,
    Lion,
    LocalResidual,
    PartialSharing,
    PowerSGD,
    RandomK,
    Rqm,
    Sign,
    Threshold,
    TopK,
    TwoBit,
    Zstd,
)
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.island import AdamW, Inner, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import SGD, Nesterov, Outer
from lowcomm.types import require


def smoke() -> RunConfig:
    """The DiLoCo smoke with 4-bit updates and error feedback: seconds on a CPU."""
    return RunConfig(
        name="compressed-smoke",
        steps=96,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=16, outer=Nesterov(lr=0.7, momentum=0.6), codec=ErrorFeedback(codec=Int4())),
        checkpoint=CheckpointConfig(every_rounds=2),
    )


AVERAGE = Nesterov(lr=1.0, momentum=0.0)
"""Averaging, with a momentum that flags can raise: error feedback sends late, which momentum overshoots."""


def _tiny(name: str, codec: Codec, outer: Outer | None = None) -> RunConfig:
    return RunConfig(
        name=name,
        steps=2560,
        data=DataConfig(seq_len=128, batch_size=8, validation_sequences=256),
        model=ModelConfig(preset="tiny"),
        inner=InnerConfig(optimizer=AdamW(lr=3e-3)),
        sync=SyncConfig(every=32, outer=outer or Nesterov(lr=0.7, momentum=0.8), codec=codec),
        eval=EvalConfig(every=256),
        checkpoint=CheckpointConfig(every_rounds=20),
    )


def int8() -> RunConfig:
    """8 bits per update in blocks of 256, error feedback: a quarter of DiLoCo's bytes."""
    return _tiny("int8", ErrorFeedback(codec=Int8()))


def fp8() -> RunConfig:
    """8-bit floats (e4m3) in blocks of 256, error feedback: a quarter of DiLoCo's bytes."""
    return _tiny("fp8", ErrorFeedback(codec=Fp8()))


def int4() -> RunConfig:
    """4 bits per update in blocks of 256, error feedback: an eighth of DiLoCo's bytes."""
    return _tiny("int4", ErrorFeedback(codec=Int4()))


def two_bit() -> RunConfig:
    """2 bits per update in blocks of 256, error feedback: a sixteenth of DiLoCo's bytes."""
    return _tiny("two-bit", ErrorFeedback(codec=TwoBit()))


def sign() -> RunConfig:
    """1 bit per update and a scale per block of 256, error feedback: a thirtieth of DiLoCo's bytes."""
    return _tiny("sign", ErrorFeedback(codec=Sign()))


def sparseloco() -> RunConfig:
    """SparseLoCo (arXiv 2508.15706): 64 of 4096 in 2 bits, error feedback 0.95, averaging: 1/200 of DiLoCo's bits."""
    return _tiny("sparseloco", ErrorFeedback(codec=TopK(chunk=4096, k=64, bits=2), beta=0.95), AVERAGE)


def sparse_kept() -> RunConfig:
    """SparseLoCo's payloads; what is not sent stays in the island's weights (after CHOCO-SGD, arXiv 1902.00340)."""
    # a momentum carries on what only some islands had room to send: averaging loses more
    outer = Nesterov(lr=1.0, momentum=0.7)
    return _tiny("sparse-kept", LocalResidual(codec=TopK(chunk=4096, k=64, bits=2)), outer)


def random_k() -> RunConfig:
    """An eighth of the entries, drawn anew each round from the shared seed, in 2 bits, error feedback."""
    return _tiny("random-k", ErrorFeedback(codec=RandomK(chunk=4096, k=512, bits=2), beta=0.9), AVERAGE)


def psofed() -> RunConfig:
    """PSO-Fed (arXiv 2110.13607): an eighth of the entries in turn, in 2 bits; the others stay the island's own."""
    return _tiny("psofed", LocalResidual(codec=PartialSharing(chunk=4096, k=512, bits=2)), AVERAGE)


def threshold() -> RunConfig:
    """Every entry above the root mean square (gradient dropping, arXiv 1704.05021), in 2 bits, error feedback."""
    # at 3.0 the error grows, and the threshold with it, faster than it is sent
    return _tiny("threshold", ErrorFeedback(codec=Threshold(rms=1.0, bits=2), beta=0.9), AVERAGE)


def powersgd() -> RunConfig:
    """PowerSGD (arXiv 1905.13727), rank 8 and less as the spectrum allows (arXiv 2506.21263), error feedback."""
    return _tiny("powersgd", ErrorFeedback(codec=PowerSGD(rank=8, bits=16, energy=0.95)), AVERAGE)


def demo() -> RunConfig:
    """DeMo (arXiv 2411.19870): 64 of 4096 cosine coefficients in 2 bits, error feedback 0.95."""
    return _tiny("demo", ErrorFeedback(codec=DctTopK(k=64, bits=2), beta=0.95), AVERAGE)


def fedzip() -> RunConfig:
    """FedZip (arXiv 2102.01593): 64 of 4096, 4 centroids, entropy-coded for real, error feedback 0.95."""
    return _tiny("fedzip", ErrorFeedback(codec=FedZip(chunk=4096, k=64, clusters=4), beta=0.95), AVERAGE)


def rqm() -> RunConfig:
    """RQM (arXiv 2306.11913): 4 random bits per entry, with an epsilon in the log; error feedback 0.95."""
    return _tiny("rqm", ErrorFeedback(codec=Rqm(clip=0.01, margin=1.0, levels=16, keep=0.5), beta=0.95), AVERAGE)


def chain() -> RunConfig:
    """A chain: 64 of 4096, their values in 8 bits, zstd behind it if the link is slow, error feedback 0.95."""
    codec = TopK(chunk=4096, k=64) | Int8() | Zstd(link_bytes_per_s="measured")
    return _tiny("chain", ErrorFeedback(codec=codec, beta=0.95), AVERAGE)


def distributed_lion() -> RunConfig:
    """Distributed Lion (arXiv 2404.00438) as the optimizer: H = 1, signs up, majority down, 1 bit each way."""
    base = _tiny("distributed-lion", ErrorFeedback(codec=Lion()), SGD(lr=1e-3))
    # the inner step is the bare gradient: Lion's rate is the outer one, and signs would not see a rate that falls
    inner = InnerConfig(optimizer=Gradient(), warmup_fraction=0.0, min_lr_fraction=1.0)
    return replace(base, sync=replace(base.sync, every=1), inner=inner, checkpoint=CheckpointConfig(every_rounds=640))


@dataclass(frozen=True, kw_only=True)
class Gradient(Inner):
    """Plain gradient steps, so that with H = 1 the pseudo-gradient is the gradient times `lr`."""

    lr: float = 1.0
    """Inner learning rate (no unit); signs do not depend on it."""

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=self.lr)

    def check(self) -> None:
        require(0 < self.lr < float("inf"), "inner.optimizer.lr", self.lr, "a finite number above 0", "1")
