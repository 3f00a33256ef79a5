"""What benchmarks/headline.py trains: one small model, one set of data and tokens, six ways of lowcomm to sync it.

The peers (benchmarks/peers) take model, data and inner optimizer from `ddp`, `ddp_muon` and `diloco`.
"""

from __future__ import annotations

from lowcomm.codec import Codec, ErrorFeedback, Fp32, Int4, LocalResidual, TopK, TwoBit
from lowcomm.config import RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.island import AdamW, Inner, InnerConfig, Muon
from lowcomm.model import ModelConfig
from lowcomm.outer import SGD, Nesterov, Outer, Pier
from lowcomm.schedule import EveryH, EveryStep, Growing, OneStepDelay, Schedule, Streaming

STEPS, ISLANDS = 5120, 2
EVERY = 64
"""H of every local method but SparseLoCo, whose small payload allows 32."""
OUTER_LR, OUTER_MOMENTUM = 0.7, 0.8
"""Of DiLoCo, here and in torchft: benchmarks/results/tuning.json, by number of rounds."""
WARMED = Pier(lr=OUTER_LR, momentum=OUTER_MOMENTUM, warmup_rounds=STEPS // EVERY // 2)
"""The same, taken in half of the rounds from plain averaging on: benchmarks/results/optimizers.json."""
MUON = Muon(lr=6e-3)
"""Its rate: benchmarks/results/tuning_inner.json."""


def _nano(
    name: str, schedule: Schedule, outer: Outer, codec: Codec, every: int = EVERY, inner: Inner | None = None
) -> RunConfig:
    return RunConfig(
        name=name,
        islands=ISLANDS,
        steps=STEPS,
        threads=1,
        device="cpu",
        tensorboard=False,
        log_every=EVERY,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=512),
        model=ModelConfig(preset="nano"),
        inner=InnerConfig(optimizer=inner or AdamW(lr=3e-3)),
        sync=SyncConfig(every=every, outer=outer, codec=codec, schedule=schedule),
    )


def ddp() -> RunConfig:
    """Gradients averaged at every step."""
    return _nano("headline-ddp", EveryStep(), Nesterov(), Fp32())


def ddp_muon() -> RunConfig:
    """The same with Muon inside."""
    return _nano("headline-ddp-muon", EveryStep(), Nesterov(), Fp32(), inner=MUON)


def diloco() -> RunConfig:
    """Plain DiLoCo: fp32, training waits for every sync."""
    return _nano("headline-diloco", EveryH(), Nesterov(lr=OUTER_LR, momentum=OUTER_MOMENTUM), Fp32())


def int4_streaming() -> RunConfig:
    """Two fragments in 4 bits, each with 31 steps of time to arrive."""
    outer = Nesterov(lr=OUTER_LR, momentum=OUTER_MOMENTUM)
    return _nano("headline-int4", Streaming(fragments=2, delay=31), outer, ErrorFeedback(codec=Int4()))


def diloco_warmed() -> RunConfig:
    """Plain DiLoCo whose outer momentum is warmed up."""
    return _nano("headline-diloco-warmed", EveryH(), WARMED, Fp32())


def int4_warmed() -> RunConfig:
    """int4_streaming with the momentum warmed up."""
    schedule = Streaming(fragments=2, delay=31)
    return _nano("headline-int4-warmed", schedule, WARMED, ErrorFeedback(codec=Int4()))


def sparseloco_overlap() -> RunConfig:
    """64 of 4096 in 2 bits, averaged, each round's update travelling during the next one."""
    codec = ErrorFeedback(codec=TopK(chunk=4096, k=64, bits=2), beta=0.95)
    return _nano("headline-sparseloco", OneStepDelay(), SGD(lr=1.0), codec, every=EVERY // 2)


def sparse_kept_overlap() -> RunConfig:
    """The same payloads; what is not sent stays in the island's own weights (recipes/compressed.py:sparse_kept)."""
    codec = LocalResidual(codec=TopK(chunk=4096, k=64, bits=2))
    return _nano("headline-sparse-kept", OneStepDelay(), Nesterov(lr=1.0, momentum=0.5), codec, every=EVERY // 2)


def two_bit_delayed() -> RunConfig:
    """2 bits per entry, averaged, each round's update travelling during the next one."""
    return _nano("headline-two-bit", OneStepDelay(), SGD(lr=1.0), ErrorFeedback(codec=TwoBit()))


def muloco_two_bit() -> RunConfig:
    """DiLoCo's rounds with Muon inside, in 2 bits; training waits for every sync."""
    outer, codec = Nesterov(lr=OUTER_LR, momentum=OUTER_MOMENTUM), ErrorFeedback(codec=TwoBit())
    return _nano("headline-muloco-two-bit", EveryH(), outer, codec, inner=MUON)


def muloco_streaming() -> RunConfig:
    """Muon inside, two fragments in 2 bits, each with 31 steps of time to arrive."""
    outer, codec = Nesterov(lr=OUTER_LR, momentum=OUTER_MOMENTUM), ErrorFeedback(codec=TwoBit())
    return _nano("headline-muloco-streaming", Streaming(fragments=2, delay=31), outer, codec, inner=MUON)


def growing_two_bit() -> RunConfig:
    """Muon inside, plain averages in 2 bits, each round 6 % longer than the last, from 1 step to 128."""
    schedule, codec = Growing(growth=1.06, longest=128), ErrorFeedback(codec=TwoBit())
    return _nano("headline-growing", schedule, SGD(lr=1.0), codec, every=1, inner=MUON)
