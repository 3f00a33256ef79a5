"""Builds the parts of a run from its configuration. Whatever bad input can be found is found before a group starts."""

from __future__ import annotations

import copy
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import torch
from torch import nn

from lowcomm.config import RunConfig, check, check_resumable
from lowcomm.data import Data, Shard, build_data
from lowcomm.island import BatchedIslands, PlainIsland
from lowcomm.model import build_model, token_losses
from lowcomm.report.metrics import Metrics
from lowcomm.report.progress import Progress
from lowcomm.run_dir import available_cores, check_directory, lock
from lowcomm.signals import StopFlag
from lowcomm.sync import LocalSGD
from lowcomm.transport import Collective, Simulated, Transport
from lowcomm.types import ConfigError

DEFAULT_ISLANDS = 4


@dataclass(frozen=True, kw_only=True)
class World:
    """Who this process is, from torchrun's environment (or alone)."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    @classmethod
    def from_environment(cls) -> World:
        """RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE as torchrun sets them."""
        get = os.environ.get
        return cls(
            rank=int(get("RANK", "0")),
            size=int(get("WORLD_SIZE", "1")),
            local_rank=int(get("LOCAL_RANK", "0")),
            local_size=int(get("LOCAL_WORLD_SIZE", "1")),
        )

    @property
    def under_torchrun(self) -> bool:
        """Whether torchrun (or another launcher with its variables) started this process."""
        return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@dataclass(kw_only=True)
class Run:
    """Everything that the trainer orders; lists have one entry per local island."""

    config: RunConfig
    world: World
    data: Data
    shards: list[Shard]
    islands: list[PlainIsland]
    batched: BatchedIslands | None
    """What trains all islands at once; None: one after another."""
    sync: LocalSGD
    metrics: Metrics
    progress: Progress
    stop: StopFlag
    lock: IO[str] | None
    session: str
    """Equal on all islands, new in each process group: ties the parts of a checkpoint together."""
    resumes: int = 0
    base_time_s: float = 0.0
    start: float = 0.0
    """time.perf_counter() at which the run's clock, which all islands share, stood at 0."""

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.config.directory


def count_islands(config: RunConfig, world: World) -> int:
    """The number of islands; raises ConfigError if it does not fit torchrun's world."""
    if config.transport == "simulated":
        if world.size > 1:
            raise ConfigError(
                f"transport = 'simulated' runs in one process, but torchrun started {world.size}. "
                "Fix: leave out torchrun, or use --transport collective"
            )
        return DEFAULT_ISLANDS if config.islands is None else config.islands
    if not world.under_torchrun:
        return DEFAULT_ISLANDS if config.islands is None else config.islands
    if config.islands is not None and config.islands != world.size:
        raise ConfigError(
            f"islands = {config.islands} is not allowed: torchrun started {world.size} processes, each an island. "
            f"Fix: pass --islands {world.size}, leave it out, or start {config.islands} processes"
        )
    return world.size


def preflight(config: RunConfig, world: World) -> tuple[RunConfig, Data]:
    """Find bad input: ranges, combinations, run directory, text, tokenizer. Starts nothing and writes no run.

    Returns the configuration with its number of islands filled in, and the data.
    """
    islands = count_islands(config, world)
    check(config, islands)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda' is not allowed: torch sees no GPU here. Fix: pass --device cpu")
    check_directory(config.directory, config.resume)
    if config.resume:
        check_resumable(config, islands)
    data = build_data(config.data, islands, config.seed)
    for island in range(islands):
        data.shard(island)  # an empty shard is bad input too
        if config.eval.clients and not data.own_validation_batches(island):
            raise ConfigError(
                f"eval.clients = True is not allowed: island {island} has no held-out sequence of its own. "
                "Fix: raise data.validation_fraction, shorten data.seq_len or add text"
            )
    return dataclasses.replace(config, islands=islands), data


def pick_device(config: RunConfig, world: World) -> torch.device:
    """The device of this process's models."""
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def build_models(config: RunConfig, data: Data, count: int, device: torch.device) -> list[nn.Module]:
    """One model per local island, all from the same seed."""
    first = cast(
        "nn.Module",
        build_model(
            config.model,
            vocab_size=data.vocab_size,
            max_tokens=config.data.seq_len,
            seed=config.seed,
            eos_id=data.eos_id,
        ),
    )
    first.to(device)
    return [first, *(copy.deepcopy(first) for _ in range(count - 1))]


def assemble(config: RunConfig, data: Data, world: World) -> Run:
    """Build models, join the group, shake hands, create the run directory."""
    assert config.islands is not None
    simulated = config.transport == "simulated"
    processes_here = 1 if simulated else world.local_size
    torch.set_num_threads(config.threads or max(1, available_cores() // processes_here))
    device = pick_device(config, world)
    models = build_models(config, data, config.islands if simulated else 1, device)
    transport: Transport
    if simulated or not world.under_torchrun:
        transport = Simulated(config.islands)
    else:
        transport = Collective.open(device, config.sync.timeout_s, config.sync.streams)
    together = config.batched and len(models) > 1  # one island alone is faster as it is
    alone = config.model.compile and not together
    islands = [_island(config, model, k, alone) for model, k in zip(models, transport.local, strict=True)]
    batched = BatchedIslands(islands, compile=config.model.compile) if together else None
    sync = LocalSGD(
        models,
        [i.inner for i in islands],
        every=config.sync.every,
        outer=config.sync.outer,
        codec=config.sync.codec,
        schedule=config.sync.schedule,
        aggregator=config.sync.aggregator,
        transport=transport,
        outer_device=None if config.sync.outer_device == "model" else "cpu",
        seed=config.seed,
        quorum=config.sync.quorum,
        on_late=config.sync.on_late,
    )
    handle = lock(config.directory, world.rank, config.resume) if world.local_rank == 0 else None
    own = torch.frombuffer(bytearray(os.urandom(8)), dtype=torch.uint8)
    session = bytes(transport.gather([own] * len(transport.local))[0].numpy()).hex()  # and the directory exists
    return Run(
        config=config,
        world=world,
        data=data,
        shards=[data.shard(k) for k in transport.local],
        islands=islands,
        batched=batched,
        sync=sync,
        metrics=Metrics(config.directory, config.tensorboard),
        progress=Progress(name=config.name, steps=config.steps, enabled=world.rank == 0),
        stop=StopFlag(),
        lock=handle,
        session=session,
    )


def _island(config: RunConfig, model: nn.Module, number: int, compiled: bool) -> PlainIsland:
    forward = torch.compile(model) if compiled else model
    return PlainIsland(
        model,
        config.inner,
        steps=config.steps,
        seed=config.seed * 1_000_003 + number,
        losses=token_losses,
        forward=forward,  # pyright: ignore[reportArgumentType]
        autocast_bf16=config.model.autocast_bf16,
    )
