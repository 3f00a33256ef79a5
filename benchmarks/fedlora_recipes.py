"""What benchmarks/fedlora.py adds to recipes/fed_lora.py: SmolLM2 with other codecs, to compare bytes."""

from __future__ import annotations

from dataclasses import replace

from lowcomm.codec import Codec, Fp32, Int4
from lowcomm.config import EvalConfig, RunConfig
from recipes import fed_lora


def smollm2_fp32() -> RunConfig:
    """The adapters as they are, with the baselines that the other rows share."""
    return _smollm2(Fp32(), baselines=True)


def smollm2_int4() -> RunConfig:
    """Every value in 4 bits, as the recipe has it."""
    return _smollm2(Int4(exchange="gather"))


def smollm2_sparse() -> RunConfig:
    """A quarter of the values in 4 bits, the rest later."""
    return replace(fed_lora.smollm2_sparse(), eval=EvalConfig(clients=True))


def _smollm2(codec: Codec, baselines: bool = False) -> RunConfig:
    base = fed_lora.smollm2()
    sync = replace(base.sync, codec=codec)
    return replace(base, sync=sync, eval=EvalConfig(clients=True, baselines=baselines))
