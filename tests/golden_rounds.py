"""Runs every case of test_golden_rounds.py, simulated or over gloo, and writes the hashes as JSON.

    python -m tests.golden_rounds OUT

One process imports everything and forks: four ranks over gloo, which go through the cases in one order, and two that
simulate the same cases, half of them each. What bits depend on is said in test_golden_rounds.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import lowcomm as lc
from lowcomm.aggregate import NNM, Krum, Mean, Median, Shapley, TrimmedMean
from lowcomm.aggregate.lora import FFA, FedIT, FedRand, FedSB, HetLoRA, RoLoRA, SenderMean
from lowcomm.codec import ErrorFeedback, Fp32, Int4, Int8, InTurn, LocalResidual, Shared, TopK
from lowcomm.codec.parts import Parts
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.data.proxy import Proxy
from lowcomm.data.source import Corpus, Document, Source
from lowcomm.exchange.store import Store
from lowcomm.island import AdamW
from lowcomm.local import RankDecay, SelectLayers
from lowcomm.model import LoRA, ModelConfig
from lowcomm.outer import SGD, Nesterov
from lowcomm.recipe import load, packaged
from lowcomm.schedule import Adaptive, Growing, LateMerge, OneStepDelay, PostLocal, Streaming
from lowcomm.secure import SecureSum
from lowcomm.trainer import train
from lowcomm.transport import Collective, Simulated, Transport
from tests.methods import (
    AGGREGATORS,
    ATTACKS,
    CODECS,
    INNERS,
    LORA_RULES,
    MECHANISMS,
    MOMENTS,
    OBJECTIVES,
    OUTERS,
    SAMPLINGS,
    SCHEDULES,
    name,
    whole_codecs,
)

ISLANDS, EVERY, STEPS = 4, 3, 10
PORTABLE = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"} | {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "NUMBA")
}
"""Environment in which the CPU's vector width and number of cores change no bit; read when torch is loaded."""


def sha256(tensors: Mapping[str, Tensor]) -> str:
    """First 16 hex digits of SHA-256 over names and fp32 bits, in the order of the names."""
    state = hashlib.sha256()
    for key in sorted(tensors):
        state.update(key.encode())
        state.update(tensors[key].detach().float().contiguous().reshape(-1).numpy().tobytes())
    return state.hexdigest()[:16]


# A problem of one's own: neither its weights nor its gradients go through a matrix product or a random normal.


class Layers(nn.Module):
    """Two layers beside an embedding of more than one block or chunk of any codec, a tied weight and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(72, 64))
        self.layers = nn.ModuleList(nn.ParameterDict({"w": torch.empty(9, 7), "b": torch.empty(5)}) for _ in range(3))
        self.head = nn.Parameter(torch.empty(33, 3))
        self.tied = self.head
        self.scale = nn.Parameter(torch.tensor(1.0))


def uniform(key: str, like: Tensor) -> Tensor:
    """Values in [-1, 1) that depend on the key alone."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7])
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def fill(model: nn.Module) -> nn.Module:
    """Weights that depend on their names alone, trainable or not, whoever made the model."""
    for key, p in model.named_parameters():
        p.copy_(uniform(key, p) * 0.5)
    return model


def set_gradients(model: nn.Module, island: int, step: int) -> None:
    """Gradients of a spring to a place of each island's own, and a little noise: element by element."""
    for key, p in model.named_parameters():
        if p.requires_grad:
            noise = uniform(f"{key} {island} {step}", p)
            p.grad = (p.detach() - uniform(f"{key} {island}", p)) * (0.3 + 0.1 * island) + noise * 0.05


def adapters(rule: Any, codec: Any = None) -> nn.Module:
    """A tiny Llama with the adapters that a rule merges."""
    from transformers import LlamaConfig, LlamaForCausalLM

    train = {FFA: "B", FedSB: "core"}.get(type(rule), "AB")
    tuning = LoRA(
        rank=rule.rank,
        alpha=rule.alpha,
        rslora=rule.rslora,
        targets=("q_proj", "v_proj", "down_proj"),
        train=train,  # pyright: ignore[reportArgumentType]
    )
    shape = LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=20,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
    return fill(tuning.apply(LlamaForCausalLM(shape)))


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A user's own loop around a LocalSGD."""

    settings: Mapping[str, Any]
    model: Callable[[], nn.Module] = lambda: fill(Layers())
    inner: Any = AdamW(lr=0.02)
    clients: SyncConfig = SyncConfig()

    def build(self, transport: Transport) -> tuple[lc.LocalSGD, list[nn.Module], list[Any]]:
        """The sync over the islands of this process, their models and their optimizers."""
        models = [self.model() for _ in transport.local]
        inners = [self.inner.build(m) for m in models]
        plain = {"every": EVERY, "outer": Nesterov(lr=0.7, momentum=0.6), "seed": 7, "clients": self.clients.clients}
        sync = lc.LocalSGD(models, inners, transport=transport, **{**plain, **self.settings})
        sync.judge_by(lambda model: sum(float(p.double().square().sum()) for p in model.parameters()))
        return sync, models, inners

    def simulated(self, scratch: Path) -> dict[str, Any]:
        """As the trainer's cases have it; nothing is written."""
        return self(Simulated(ISLANDS))

    def __call__(self, transport: Transport) -> dict[str, Any]:
        """Hashes of the global weights after every round and at the end; each island's own then, and its bytes."""
        sync, models, inners = self.build(transport)
        seen: list[str] = []
        sync.listeners.append(lambda report: seen.append(sha256(sync.weights())))
        for step in range(STEPS):
            inner_step(sync, models, inners, step)
        sync.finish()
        own = {k: sha256(dict(m.named_parameters())) for k, m in zip(transport.local, models, strict=True)}
        wire = sync.transport
        counted = zip(wire.local, wire.sent_bytes, wire.received_bytes, strict=True)
        return {
            "rounds": [*seen, sha256(sync.weights())],
            "islands": own,
            "bytes": {k: [sent, received] for k, sent, received in counted},
        }


def inner_step(sync: lc.LocalSGD, models: list[nn.Module], inners: list[Any], step: int) -> None:
    """One step of every island of this process, as the trainer orders it; unequal work."""
    average = sync.next_action.average_gradients
    for i, island in enumerate(sync.transport.local):
        if sync.rests(i):
            sync.rest(i)
            continue
        set_gradients(models[i], island, step)
        sync.count_tokens(4 + island, i)
        sync.count_loss(1 + island / 8, i)
        if not average:
            inners[i].step()
    if average:
        sync.average_gradients()
        for inner in inners:
            inner.step()


def loops() -> dict[str, Loop]:
    """Every method of tests/methods.py in a loop of its own, and some together."""
    plain: dict[str, Loop] = {f"outer {name(o)}": Loop(settings={"outer": o}) for o in OUTERS}
    plain |= {f"schedule {name(s)}": Loop(settings={"schedule": _fitting(s)}) for s in SCHEDULES}
    plain |= {f"codec {name(c)}": Loop(settings={"codec": c}) for c in whole_codecs()}
    plain |= {f"inner {name(i)}": Loop(settings={}, inner=i) for i in INNERS}
    plain |= {f"aggregator {name(a)}": Loop(settings={"aggregator": a}) for a in AGGREGATORS}
    plain |= {
        f"attack {name(a)}": Loop(settings={"aggregator": Median()}, clients=SyncConfig(attack=a, allow_attack=True))
        for a in ATTACKS
        if not a.poisons
    }
    mean = Mean(by="uniform")
    plain |= {
        f"privacy {name(m)}": Loop(settings={"privacy": m, "quorum": 1.0, "aggregator": mean})
        for m in MECHANISMS
        if m.level == "client"
    }
    plain |= {
        f"sampling {name(s)}": Loop(settings={"codec": c}, clients=SyncConfig(sampling=s))
        for s, c in zip(SAMPLINGS, (ErrorFeedback(codec=TopK(chunk=64, k=8)), Fp32()), strict=False)
    }
    plain |= {
        f"objective {name(o)}": Loop(settings={}, clients=SyncConfig(objective=o))
        for o in OBJECTIVES
        if o.passes == 1 and not isinstance(o, RankDecay | SelectLayers)
    }
    plain |= {f"moments {name(m)}": Loop(settings={}, clients=SyncConfig(moments=m)) for m in MOMENTS}
    return plain | tuned() | combined()


def _fitting(schedule: Any) -> Any:
    """Periods of three steps."""
    if isinstance(schedule, Streaming):
        return dataclasses.replace(schedule, delay=min(schedule.delay, EVERY // schedule.fragments - 1))
    return dataclasses.replace(schedule, steps=STEPS) if isinstance(schedule, LateMerge) else schedule


def tuned() -> dict[str, Loop]:
    """Every rule for adapters, and the codecs and objectives that need them."""

    def loop(rule: Any, codec: Any = None, **clients: Any) -> Loop:
        settings = {"aggregator": rule, "outer": SGD(lr=1.0), "codec": codec}
        return Loop(settings=settings, model=lambda: adapters(rule), clients=SyncConfig(**clients))

    seen = {f"lora {name(r)}": loop(r) for r in LORA_RULES}
    seen |= {f"lora codec {name(c)}": loop(_rule_of(c), c) for c in CODECS if isinstance(c, Parts)}
    pruned = HetLoRA(rank=4, ranks=(4, 3, 2, 4), gamma=0.75)
    seen["lora ranks that are pruned"] = loop(pruned, objective=RankDecay(strength=3.0, gamma=0.75))
    seen["lora layers that are selected"] = loop(SenderMean(rank=4), objective=SelectLayers(budget_bytes=256))
    seen["lora sampled, int4"] = loop(
        FedIT(rank=4), ErrorFeedback(codec=Int4(exchange="gather")), sampling=SAMPLINGS[0]
    )
    return seen


def _rule_of(codec: Parts) -> Any:
    """A rule that goes with a codec which sends only parts."""
    return {InTurn: RoLoRA(rank=4), Shared: FedRand(rank=4)}.get(type(codec), SenderMean(rank=4))


def combined() -> dict[str, Loop]:
    """Features that meet in one round."""
    int4, sparse = ErrorFeedback(codec=Int4()), TopK(chunk=64, k=8)
    streaming = Streaming(fragments=2, delay=0, by="size")
    halves = SyncConfig(local_steps=(3, 3, 2, 1))
    scaffold = next(o for o in OBJECTIVES if type(o).__name__ == "Scaffold")
    private = {"privacy": MECHANISMS[0], "quorum": 1.0, "aggregator": Mean(by="uniform")}
    return {
        "streaming, int4": Loop(settings={"schedule": streaming, "codec": int4}),
        "streaming, late, int4": Loop(settings={"schedule": Streaming(fragments=1, delay=2), "codec": int4}),
        "delayed, int4": Loop(settings={"schedule": OneStepDelay(), "codec": int4}),
        "delayed, kept residual": Loop(settings={"schedule": OneStepDelay(), "codec": LocalResidual(codec=sparse)}),
        "int8 gathered, uniform": Loop(settings={"codec": Int8(exchange="gather"), "aggregator": Mean(by="uniform")}),
        "uneven steps": Loop(settings={}, clients=halves),
        "uneven steps, scaffold": Loop(settings={}, clients=dataclasses.replace(halves, objective=scaffold)),
        "sampled, private": Loop(settings=private, clients=SyncConfig(sampling=SAMPLINGS[0])),
        "private, int8": Loop(settings={**private, "codec": Int8()}),
        "secure": Loop(settings={"aggregator": Mean(by="uniform")}, clients=SyncConfig(secure=SecureSum())),
        "secure, 64 bits": Loop(settings={}, clients=SyncConfig(secure=SecureSum(bits=64))),
        "secure, private": Loop(settings=private, clients=SyncConfig(secure=SecureSum())),
    }


# Recipes, by the trainer, on a nano model


@dataclass(frozen=True, kw_only=True)
class Words(Source):
    """Text that is the same everywhere and already split, so that nothing of a run's data can move."""

    def read(self, cache_dir: Path) -> Corpus:
        def text(key: str) -> bytes:
            digits = [hashlib.sha256(f"{key} {i}".encode()).hexdigest()[:7] for i in range(400)]
            return " ".join(digits).encode()

        train, held = (
            [Document(f"{k}.txt", f"{side}{k}".encode(), text(f"{side} {k}")) for k in range(ISLANDS)]
            for side in ("train", "held out")
        )
        return Corpus(documents=train, validation=held)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A packaged recipe cut to two rounds of a nano model."""

    config: RunConfig

    def simulated(self, scratch: Path) -> dict[str, Any]:
        """Hash of the final weights, number of rounds and tokens, from summary.json."""
        run_dir = scratch / "run"
        assert train(dataclasses.replace(self.config, run_dir=run_dir)) == 0
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
        return {"weights": summary["weights_sha256"][:16], "rounds": summary["rounds"], "tokens": summary["tokens"]}


@cache
def recipes() -> dict[str, Recipe]:
    """Packaged recipes, which takes a second; of those that only differ in sizes and rates, the first."""
    seen: dict[tuple[Any, ...], tuple[str, Recipe]] = {}
    for found in packaged():
        config = _cut(load(found.name))
        if isinstance(config.sync.exchange, Store):
            continue  # tests/storerun: its rounds are those of a chain, which has members and no islands
        rated = dataclasses.replace(config.sync, outer=SGD(lr=1.0), on_late="wait", late_tolerance_s=1.0)
        kinds = [type(x) for x in (config.sync.outer, config.inner.optimizer, config.model.tuning)]
        seen.setdefault((rated, config.model.tuning, *kinds), (f"recipe {found.name}", Recipe(config=config)))
    return dict(seen.values())


# Runs that an earlier version left behind

LEFT = Path(__file__).parent / "golden" / "runs"


def left_behind() -> dict[str, Left]:
    """Tiny runs that were stopped at step 6 of 8, inside a period; in the first an exchange is in flight."""
    base = dataclasses.replace(_cut(RunConfig()), islands=2, model=ModelConfig(preset="nano", width=8))
    sync = SyncConfig(every=4, outer=SGD(lr=1.0))
    lora = ModelConfig(preset="nano", width=8, tuning=LoRA(rank=2))
    scaffold = next(o for o in OBJECTIVES if type(o).__name__ == "Scaffold")
    adaptive = next(m for m in MECHANISMS if type(m).__name__ == "AdaptiveClip")
    int4 = ErrorFeedback(codec=Int4())
    streaming = SyncConfig(every=4, schedule=Streaming(fragments=2, delay=1), codec=int4)
    changes: dict[str, dict[str, Any]] = {
        "streaming": {"sync": streaming},
        "lora": {"sync": dataclasses.replace(sync, objective=scaffold, aggregator=FedIT(rank=2)), "model": lora},
        "private": {"sync": dataclasses.replace(sync, privacy=adaptive, quorum=1.0, aggregator=Mean(by="uniform"))},
    }
    return {f"resumed {key}": Left(config=dataclasses.replace(base, **c), name=key) for key, c in changes.items()}


@dataclass(frozen=True, kw_only=True)
class Left:
    """A run directory under tests/golden, which a run goes on from."""

    config: RunConfig
    name: str

    def write(self) -> None:
        """Make it, if it is not there; later versions must read what an earlier one wrote, so it is never rewritten."""
        if not (LEFT / self.name).exists():
            with tempfile.TemporaryDirectory() as scratch:
                stop = CheckpointConfig(export=False, stop_at_step=6)
                assert train(dataclasses.replace(self.config, run_dir=Path(scratch, "run"), checkpoint=stop)) == 3
                shutil.copytree(Path(scratch, "run", "checkpoints"), LEFT / self.name / "checkpoints")
                shutil.copy(Path(scratch, "run", "config.json"), LEFT / self.name)

    def simulated(self, scratch: Path) -> dict[str, Any]:
        """As a recipe's, from the stored checkpoint on; and of the run that was never stopped."""
        shutil.copytree(LEFT / self.name, scratch / "run")
        whole = Recipe(config=self.config).simulated(scratch / "whole")
        return {
            "whole": whole,
            "resumed": Recipe(config=dataclasses.replace(self.config, resume=True)).simulated(scratch),
        }


def _cut(config: RunConfig) -> RunConfig:
    """Four islands, eight steps of a nano model, periods of four steps; what matters to a round stays."""
    sync, tuning = config.sync, config.model.tuning
    if isinstance(tuning, LoRA) and tuning.adapter is not None:
        tuning = dataclasses.replace(tuning, adapter=None)
    if sync.local_steps is not None:
        sync = dataclasses.replace(sync, local_steps=(4, 4, 2, 1))
    if sync.privacy is not None:
        sync = dataclasses.replace(sync, privacy=dataclasses.replace(sync.privacy, seed=1))  # pyright: ignore
    if isinstance(sync.aggregator, Krum):
        sync = dataclasses.replace(sync, aggregator=dataclasses.replace(sync.aggregator, faulty=0))
    if isinstance(sync.aggregator, Shapley):
        sync = dataclasses.replace(sync, aggregator=Shapley(permutations=2), proxy=Proxy(source=Words(), sequences=1))
    if sync.attack is not None:
        rule, attack = NNM() | TrimmedMean(), dataclasses.replace(sync.attack, islands=(3,))
        sync = dataclasses.replace(sync, aggregator=rule, attack=attack, allow_attack=True)
    return dataclasses.replace(
        config,
        name="golden",
        islands=ISLANDS,
        steps=8,
        threads=1,
        transport="simulated",
        batched=False,
        device="cpu",
        tensorboard=False,
        data=DataConfig(source=Words(), seq_len=8, batch_size=1, validation_sequences=1),
        model=ModelConfig(preset="nano", width=32, tuning=tuning),
        inner=dataclasses.replace(config.inner, accumulation=1),
        sync=dataclasses.replace(sync, every=1 if sync.every == 1 else 4, schedule=_short(sync.schedule)),
        eval=EvalConfig(),
        checkpoint=CheckpointConfig(export=False),
    )


def _short(schedule: Any) -> Any:
    """The same schedule in eight steps of periods of four."""
    if isinstance(schedule, Streaming):
        return dataclasses.replace(schedule, fragments=2, delay=min(schedule.delay, 1))
    if isinstance(schedule, Adaptive):
        return dataclasses.replace(schedule, shortest=2, longest=8, step_s=0.001, link_mbit=10.0)
    if isinstance(schedule, PostLocal):
        return dataclasses.replace(schedule, warmup_steps=3)
    if isinstance(schedule, LateMerge):
        return dataclasses.replace(schedule, steps=8, merges=2)
    return dataclasses.replace(schedule, longest=8) if isinstance(schedule, Growing) else schedule


# Processes


def cases() -> dict[str, Loop | Recipe | Left]:
    """All of them by name."""
    return {**loops(), **recipes(), **left_behind()}


@cache
def for_long_runs() -> set[str]:
    """Cases that only `make test-long` runs: of each file of recipes all but the first, as their methods are loops."""
    first: dict[str, str] = {}
    for key in recipes():
        first.setdefault(key.partition(":")[0], key)
    return set(recipes()) - set(first.values())


def simulate(chosen: Mapping[str, Loop | Recipe | Left], out: Path) -> dict[str, Any]:
    """These cases, in this process alone."""
    seen: dict[str, Any] = {}
    for key, case in chosen.items():
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            seen[key] = outcome(lambda c=case, s=scratch: c.simulated(Path(s)))
    return seen


def exchange() -> dict[str, Any]:
    """Every loop, as one island of several processes."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    seen = {key: outcome(lambda c=loop: c(Collective())) for key, loop in loops().items()}
    dist.destroy_process_group()
    return seen


def outcome(case: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a case gives, or what it raises."""
    try:
        return case()
    except Exception:
        return {"error": traceback.format_exc()}


def fork(function: Callable[[], dict[str, Any]], path: Path) -> int:
    """The id of a child that writes what the function returns."""
    child = os.fork()
    if child:
        return child
    path.write_text(json.dumps(outcome(function)), encoding="utf-8")
    os._exit(0)


def main() -> None:
    """OUT gets one file per process; with --long all cases."""
    torch.set_num_threads(1)
    out, left_out = Path(sys.argv[1]), set[str]() if "--long" in sys.argv else for_long_runs()
    chosen = [(key, case) for key, case in cases().items() if key not in left_out]
    for left in left_behind().values():
        left.write()
    adapters(FedIT(rank=4))  # loads transformers and peft, once for all
    simulated = [fork(lambda k=k: simulate(dict(chosen[k::2]), out), out / f"simulated-{k}.json") for k in range(2)]
    for child in simulated:  # they also leave compiled kernels behind, which the ranks would all compile at once
        os.waitpid(child, 0)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ |= {"WORLD_SIZE": str(ISLANDS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    ranks: list[int] = []
    for k in range(ISLANDS):
        os.environ["RANK"] = str(k)
        ranks.append(fork(exchange, out / f"gloo-{k}.json"))
    for child in ranks:
        os.waitpid(child, 0)


if __name__ == "__main__":
    from tests import golden_rounds  # under its own name, by which a stored config.json knows its classes

    golden_rounds.main()
