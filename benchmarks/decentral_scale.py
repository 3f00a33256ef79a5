"""What simulating gossip costs beside training: 256 nodes of the nano preset, and the step time of one island."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from lowcomm.exchange.gossip import Gossip
from lowcomm.island import AdamW
from lowcomm.model import ModelConfig, build_model, token_losses
from lowcomm.outer import SGD
from lowcomm.sync import LocalSGD
from lowcomm.topology import OnePeer

NODES, EVERY, SEQ_LEN, BATCH, VOCAB = 256, 16, 64, 2, 257


def measure(nodes: int = NODES, rounds: int = 1) -> dict[str, Any]:
    """Seconds of a step of one island; and of whole rounds of many nodes over those of their forward and backward.

    Rounds are of 16 inner steps; the share counts inner steps of AdamW and the exchange to gossip's cost.
    """
    torch.set_num_threads(1)
    shape = ModelConfig(preset="nano")
    models = [build_model(shape, vocab_size=VOCAB, max_tokens=SEQ_LEN, seed=0, eos_id=0) for _ in range(nodes)]
    inners = [AdamW(lr=3e-3).build(m) for m in models]
    sync = LocalSGD(models, inners, every=EVERY, outer=SGD(lr=1.0), exchange=Gossip(topology=OnePeer()))
    draws = torch.Generator().manual_seed(0)
    text = torch.randint(0, VOCAB - 1, (BATCH, SEQ_LEN + 1), generator=draws)
    inputs, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    compute_s, steps, exchanged_s = 0.0, list[float](), list[float]()
    sync.listeners.append(lambda report: exchanged_s.append(report.seconds_s))
    began = time.perf_counter()
    for _ in range(rounds * EVERY):
        for model, inner in zip(models, inners, strict=True):
            start = time.perf_counter()
            token_losses(model, inputs, targets).mean().backward()
            compute_s += time.perf_counter() - start
            before = sum(exchanged_s)
            inner.step()
            inner.zero_grad()
            steps.append(time.perf_counter() - start - (sum(exchanged_s) - before))
    whole_s = time.perf_counter() - began
    return {
        "nodes": nodes,
        "step_s": statistics.median(steps),
        "whole_s": whole_s,
        "forward_backward_s": compute_s,
        "exchange_s": sum(exchanged_s),
        "ratio": whole_s / compute_s,
    }
