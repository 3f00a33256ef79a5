"""Federated LoRA: clients keep their text, adapters travel. One function per method, on one tiny pretrained model.

The clients are installed packages (their sources, one package each); the base is a Llama of 0.12M parameters that has
read the standard library, trained once and cached (under a minute).
"""

from __future__ import annotations

from dataclasses import replace

from lowcomm.aggregate import Aggregator, Mean
from lowcomm.aggregate.lora import (
    FFA,
    FedEx,
    FedIT,
    FedRand,
    FedSA,
    FedSB,
    FlexLoRA,
    FLoRA,
    HetLoRA,
    HLoRA,
    LoraFair,
    RoLoRA,
    SenderMean,
)
from lowcomm.codec import Codec, EitherFactor, ErrorFeedback, Fp32, Int4, InTurn, LargestLayers, Shared, TopK
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig, Dirichlet, Docstrings, Packages
from lowcomm.island import AdamW, InnerConfig
from lowcomm.local import RankDecay, SelectLayers
from lowcomm.model import LoRA, ModelConfig
from lowcomm.outer import SGD
from lowcomm.privacy import AdaptiveClip, ExampleGaussian, Mechanism
from lowcomm.smollm2 import SmolLM2, SmolLM2Tokens
from lowcomm.tiny_base import TinyBase

RANK = 8
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CLIENTS = ("numpy", "rich", "torch", "transformers")
QUESTIONS = Docstrings(names=("networkx", "numpy", "rich", "sympy"), max_chars=190)
"""Packages that come with torch and with this one."""
RANKS = (8, 4, 4, 2)
"""Ranks of clients of unequal means, for the methods that take them."""
EXAMPLES = ExampleGaussian(clip=0.1, noise_multiplier=0.7, batches="poisson")
"""Epsilon 2.4 at delta 1e-5 after 48 steps, by the client with the fewest sequences."""


def smoke() -> RunConfig:
    """FedIT on four clients, with baselines: under two minutes on a CPU, the pretraining of the base included."""
    return _tiny("smoke", FedIT(rank=RANK))


def fedit() -> RunConfig:
    """FedIT: means of A and of B, the naive rule; its aggregation error is in every round's notes."""
    return _tiny("fedit", FedIT(rank=RANK))


def ffa() -> RunConfig:
    """FFA-LoRA: A frozen, B averaged: exact, half the bytes."""
    return _tiny("ffa", FFA(rank=RANK), LoRA(rank=RANK, targets=ALL, train="B"))


def rolora() -> RunConfig:
    """RoLoRA: A and B in turn by the global round: exact, half the bytes."""
    return _tiny("rolora", RoLoRA(rank=RANK), codec=InTurn())


def flora() -> RunConfig:
    """FLoRA: stacked adapters go into the base weights, fresh ones for all: exact."""
    return _tiny("flora", FLoRA(rank=RANK))


def fedex() -> RunConfig:
    """FedEx-LoRA: means, and the exact rest into the base weights."""
    return _tiny("fedex", FedEx(rank=RANK))


def flexlora() -> RunConfig:
    """FlexLoRA: SVD of the exact sum, clients of ranks 8, 4, 4 and 2."""
    return _tiny("flexlora", FlexLoRA(rank=RANK, ranks=RANKS))


def hlora() -> RunConfig:
    """HLoRA: as FlexLoRA, with balanced factors."""
    return _tiny("hlora", HLoRA(rank=RANK, ranks=RANKS))


def hetlora() -> RunConfig:
    """HetLoRA: zero-padded means weighted by the size of each update; ranks of 8, 4, 4 and 2 that clients prune."""
    base = _tiny("hetlora", HetLoRA(rank=RANK, ranks=RANKS, gamma=0.99))
    return replace(base, sync=replace(base.sync, objective=RankDecay(gamma=0.99)))


def hetlora_pruned() -> RunConfig:
    """HetLoRA with a decay of last rows so strong that clients do prune within six rounds, at a higher loss."""
    base = hetlora()
    sync = replace(base.sync, objective=RankDecay(strength=0.1, gamma=0.99))
    return replace(base, name="fed-lora-hetlora-pruned", sync=sync)


def fedsa() -> RunConfig:
    """FedSA-LoRA: A is shared, every client keeps its own B."""
    return _tiny("fedsa", FedSA(rank=RANK), codec=Shared())


def lora_fair() -> RunConfig:
    """LoRA-FAIR: means, B corrected towards the exact sum."""
    return _tiny("lora-fair", LoraFair(rank=RANK))


def fedrand() -> RunConfig:
    """FedRand: each client sends a random half of its factors and keeps the other to itself."""
    return _tiny("fedrand", FedRand(rank=RANK), codec=EitherFactor())


def cellm() -> RunConfig:
    """CELLM: LoRA with sparse updates: one entry in 16 in 8 bits, what is left out is sent later."""
    return _tiny("cellm", FedIT(rank=RANK), codec=ErrorFeedback(codec=TopK(chunk=1024, k=64, bits=8)))


def fedsb() -> RunConfig:
    """Fed-SB: only r x r cores between frozen factors are trained and sent, rank 16."""
    return _tiny("fedsb", FedSB(rank=16, alpha=16.0), LoRA(rank=16, alpha=16.0, targets=ALL, train="core"))


def selective() -> RunConfig:
    """Selective layers: each client trains and sends the layers with the largest gradients, 16 KB of fp32 per round."""
    base = _tiny("selective", SenderMean(rank=RANK), codec=LargestLayers(budget_bytes=16_384))
    return replace(base, sync=replace(base.sync, objective=SelectLayers(budget_bytes=16_384)))


def selective_after() -> RunConfig:
    """The same budget, but all layers are trained and those that changed most are sent."""
    return _tiny("selective-after", SenderMean(rank=RANK), codec=LargestLayers(budget_bytes=16_384))


def dp() -> RunConfig:
    """DP-LoRA: noise bounds what the model tells of one sequence, by epsilon 2.4: odds that change 11 times at most."""
    return _private("dp", Mean(by="uniform"), EXAMPLES)


def dp_ffa() -> RunConfig:
    """DP-LoRA with a frozen A: half as many values are noised, and noise on A never meets noise on B. Epsilon 2.4."""
    return _private("dp-ffa", FFA(rank=RANK, by="uniform"), EXAMPLES, LoRA(rank=RANK, targets=ALL, train="B"))


def dp_clients() -> RunConfig:
    """DP-FedAvg with a clip that adapts: whole clients are hidden, which takes many of them to be of use."""
    return _private("dp-clients", Mean(by="uniform"), AdaptiveClip(clip=0.1, noise_multiplier=1.0))


def smollm2() -> RunConfig:
    """SmolLM2-135M-Instruct, r = 8 on q and v, four clients, FedEx in int4: about 25 minutes on two cores."""
    lora = LoRA(rank=8, alpha=16.0)
    return RunConfig(
        name="fed-lora-smollm2",
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
        model=ModelConfig(origin=SmolLM2(), tuning=lora),
        inner=InnerConfig(optimizer=AdamW(lr=3e-4, weight_decay=0.0)),
        sync=SyncConfig(every=8, outer=SGD(lr=1.0), aggregator=FedEx(rank=8), codec=Int4(exchange="gather")),
        eval=EvalConfig(clients=True, baselines=True),
        checkpoint=CheckpointConfig(every_rounds=1),
        log_every=4,
    )


def smollm2_sparse() -> RunConfig:
    """As `smollm2`, with a quarter of the adapter's values in 4 bits per round and the rest later."""
    base = smollm2()
    codec = ErrorFeedback(codec=TopK(chunk=1024, k=256) | Int4())
    return replace(base, name="fed-lora-smollm2-sparse", sync=replace(base.sync, codec=codec))


def docstrings() -> RunConfig:
    """Instructions: a docstring asks, its function answers; one package per client, loss on the answers only."""
    base = _tiny("docstrings", FedIT(rank=RANK))
    return replace(base, data=replace(base.data, source=QUESTIONS, seq_len=256, batch_size=4))


def chat() -> RunConfig:
    """SmolLM2-135M-Instruct on the same questions in its own chat template, clients of unequal shares: 25 minutes."""
    base = smollm2()
    clients = replace(base.data, source=QUESTIONS, sharding="iid", partition=Dirichlet(alpha=0.5), drop_unanswered=True)
    return replace(base, name="fed-lora-chat", data=clients)


def _private(name: str, rule: Aggregator, mechanism: Mechanism, lora: LoRA | None = None) -> RunConfig:
    base = _tiny(name, rule, lora)
    sync = replace(base.sync, privacy=mechanism, quorum=1.0)  # noise is shared by those who are sure to be there
    data = replace(base.data, batch_size=32)  # noise is shared by more sequences
    return replace(base, steps=48, data=data, sync=sync, eval=EvalConfig(clients=True, membership=True))


def _tiny(name: str, rule: Aggregator, lora: LoRA | None = None, codec: Codec | None = None) -> RunConfig:
    return RunConfig(
        name=f"fed-lora-{name}",
        islands=4,
        steps=96,
        threads=1,  # a second one is of no use to so small a model
        data=DataConfig(
            source=Packages(names=CLIENTS, max_bytes_each=200_000),
            sharding="by_folder",
            seq_len=64,
            batch_size=8,
            validation_sequences=64,
        ),
        model=ModelConfig(origin=TinyBase(), tuning=lora or LoRA(rank=RANK, targets=ALL)),
        inner=InnerConfig(optimizer=AdamW(lr=3e-3, weight_decay=0.0)),
        sync=SyncConfig(every=16, outer=SGD(lr=1.0), aggregator=rule, codec=codec or Fp32()),
        eval=EvalConfig(clients=True, baselines=True),
        checkpoint=CheckpointConfig(every_rounds=2),
    )
