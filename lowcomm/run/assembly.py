"""Builds the parts of a run from its configuration. Whatever bad input can be found is found before a group starts."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import nn

from lowcomm.config import RunConfig
from lowcomm.config_check import check
from lowcomm.config_file import check_resumable
from lowcomm.data import Data, Shard, build_data
from lowcomm.data.hf_dataset import HFDataset
from lowcomm.exchange.store import Store
from lowcomm.hooks.influence import Influence
from lowcomm.island import BatchedIslands, PlainIsland
from lowcomm.island.mesh import Mesh
from lowcomm.island_kinds import build_island
from lowcomm.membership import Membership, World, count_islands, join
from lowcomm.model import build_model
from lowcomm.report.metrics import Metrics
from lowcomm.report.progress import Progress
from lowcomm.run.held_out import check_influence, measures
from lowcomm.run.host_checks import check_host
from lowcomm.run.poisoned import check_planted, poisoned
from lowcomm.run.privacy_spent import Ledger, ledger_of, of_all_sites, secure, training_shards
from lowcomm.run.proxy_loss import proxy_batches
from lowcomm.run.run_dir import available_cores, check_directory, has_checkpoint, is_locked, lock
from lowcomm.run.signals import StopFlag
from lowcomm.state.coverage import UnnamedBuffersError, prove
from lowcomm.state.shelf import Shelf
from lowcomm.state.spec import BufferRule
from lowcomm.sync import LocalSGD
from lowcomm.transport.base import Transport
from lowcomm.types import ConfigError, CoverageError
from lowcomm.verification.record import StepRecord


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
    members: Membership
    metrics: Metrics
    progress: Progress
    stop: StopFlag
    ledger: Ledger | None
    """What the run's privacy costs; None: it has no mechanism."""
    lock: IO[str] | None
    writes_from_start: bool
    """Whether this process writes summary, clients and export: as `World.writes`, or the first of a site."""
    shelf: Shelf | None
    """What puts away on disk what clients keep between their rounds; None: it stays in memory."""
    session: str
    """Equal on all islands, new in each process group: ties the parts of a checkpoint together."""
    record: StepRecord | None = None
    """What hashes every step; None: nothing does."""
    influence: Influence | None = None
    """What measures whose Delta helps whom; None: nothing does."""
    lost: dict[int, int] = field(default_factory=dict)
    """Islands that are gone, as far as was written down, and the round in which each was first missed."""
    resumes: int = 0
    base_time_s: float = 0.0
    start: float = 0.0
    """time.perf_counter() at which the run's clock, which all islands share, stood at 0."""

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.config.directory

    @property
    def reading_mesh(self) -> Mesh | None:
        """This island's ranks where each may fail to read its text in mid-run: a stream's."""
        source = self.config.data.source
        return self.members.mesh if isinstance(source, HFDataset) and source.streaming else None

    @property
    def writes(self) -> bool:
        """Whether this process writes what a run leaves behind: as from the start, or as the first that is left."""
        transport = self.sync.transport
        return self.writes_from_start or (self.members.mesh is None and transport.present[0] == transport.local[0])

    @property
    def leads_node(self) -> bool:
        """Whether this process writes what a node needs once: the first on it that is left."""
        first = self.world.rank - self.world.local_rank
        return self.world.local_rank == 0 or (
            self.members.mesh is None and all(k in self.sync.transport.lost for k in range(first, self.world.rank))
        )

    def close(self) -> None:
        """Let go of files and groups."""
        self.progress.close()
        self.metrics.close()
        self.members.close()
        if self.record is not None:
            self.record.close()
        if self.lock is not None:
            self.lock.close()


def preflight(config: RunConfig, world: World) -> tuple[RunConfig, Data]:
    """Find bad input: ranges, combinations, run directory, text, tokenizer. Starts nothing and writes no run.

    Returns the configuration with its number of islands and their size filled in, and the data.
    """
    islands, size = count_islands(config, world)
    config = dataclasses.replace(config, islands=islands, island=dataclasses.replace(config.island, size=size))
    check(config, islands)
    if isinstance(config.sync.exchange, Store):
        raise ConfigError(
            "sync.exchange = Store(...) is not allowed without a store. Fix: pass --store DIR, or s3://BUCKET/RUN"
        )
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda' is not allowed: torch sees no GPU here. Fix: pass --device cpu")
    if config.client_state == "disk" and config.device != "cpu" and torch.cuda.is_available():
        raise ConfigError("client_state = 'disk' is not allowed on a GPU. Fix: leave it out, or pass --device cpu")
    check_directory(config.directory, config.resume)
    if config.resume is True or (config.resume == "auto" and has_checkpoint(config.directory)):
        check_resumable(config, islands)
    check_host(config, world, on_gpu=config.device != "cpu" and torch.cuda.is_available())
    data = build_data(config.data, islands, config.seed)
    for island in range(islands):
        data.shard(island)  # an empty shard is bad input too
        if config.eval.clients and not data.own_validation_batches(island):
            raise ConfigError(
                f"eval.clients = True is not allowed: island {island} has no held-out sequence of its own. "
                "Fix: raise data.validation_fraction, shorten data.seq_len or add text"
            )
    ledger_of(config, data, islands)
    proxy_batches(config, data)
    check_influence(config)
    check_planted(config)
    return config, data


def pick_device(config: RunConfig, world: World) -> torch.device:
    """The device of this process's models."""
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def build_models(config: RunConfig, data: Data, count: int, device: torch.device) -> list[nn.Module]:
    """One model per local island, all from the same seed; what is not trained is one tensor for all."""
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
    check_buffers(config, first)
    first.to(device)
    frozen = {id(p): p for p in first.parameters() if not p.requires_grad}
    return [first, *(copy.deepcopy(first, dict[int, Any](frozen)) for _ in range(count - 1))]


def check_buffers(config: RunConfig, model: nn.Module) -> None:
    """Raise ConfigError for a model with buffers that `sync.buffers` does not name, or names that it has not."""
    rules = config.sync.buffers or {}
    try:
        averaged = prove(model, rules).averaged_buffers
    except UnnamedBuffersError as error:
        flags = " ".join(f"'{pattern}' {rule}" for pattern, rule in {**rules, **error.rules}.items())
        raise ConfigError(
            f"sync.buffers = {config.sync.buffers} is not allowed: {error.cause}. Fix: --sync.buffers {flags} "
            "(local: each island keeps its own)"
        ) from error
    except CoverageError as error:
        raise ConfigError(f"sync.buffers = {config.sync.buffers} is not allowed: {error}") from error
    private = config.sync.privacy is not None and config.sync.privacy.level == "client"
    if averaged and (private or config.sync.secure is not None):
        raise ConfigError(
            f"sync.buffers = {config.sync.buffers} is not allowed: {averaged[0]} would be averaged without the "
            f"noise or masks of sync.{'privacy' if private else 'secure'}. Fix: --sync.buffers '*' local"
        )


def _rules_of(config: RunConfig, model: nn.Module, whole: bool) -> dict[str, BufferRule]:
    """The rules for a model's buffers; where an island's rank has part of the model, those that match one here."""
    rules = config.sync.buffers or {}
    names = [name for name, _ in model.named_buffers()]
    return {p: rule for p, rule in rules.items() if whole or any(fnmatchcase(name, p) for name in names)}


def assemble(config: RunConfig, data: Data, world: World, relayed: Transport | None = None) -> Run:
    """Build models, join the group, shake hands, create the run directory. relayed: what joins the islands instead."""
    assert config.islands is not None
    simulated = config.transport == "simulated"
    torch.set_num_threads(config.threads or max(1, available_cores() // (1 if simulated else world.local_size)))
    device = pick_device(config, world)
    turns = config.take_turns(config.islands)
    models = build_models(config, data, config.islands if simulated and not turns else 1, device)
    transport = (members := join(config, world, device, relayed)).transport
    together = config.batched and len(models) > 1  # one island alone is faster as it is
    islands = _build_islands(
        config, models * config.islands if turns else models, members, config.model.compile and not together
    )
    record = StepRecord(islands) if config.step_hashes else None  # before the sync: its hook sees what is before one
    batched = BatchedIslands(islands, compile=config.model.compile) if together else None
    sync = _sync_of(config, models, islands, members, turns)
    secure(islands, sync.state, config.data.batch_size)
    shelf = Shelf(sync.state, config.directory) if config.client_state == "disk" else None
    if shelf is not None:
        sync.listeners.append(shelf.on_sync)
    handle = lock(config.directory, world.rank, config.resume) if world.local_rank == 0 else None
    session = _agree_on_session(members)  # and the directory exists
    site = is_site(config, world, members)
    return Run(
        config=config,
        world=world,
        data=data,
        shards=poisoned(
            training_shards(data, sync.state),
            sync.state.spec.clients.attack,
            data.vocab_size,
            config.seed,
            transport.local,
        ),
        islands=islands,
        batched=batched,
        sync=sync,
        members=members,
        metrics=Metrics(config.directory, config.tensorboard),
        progress=Progress(name=config.name, steps=config.steps, enabled=world.writes or site),
        stop=StopFlag(),
        ledger=of_all_sites(ledger_of(config, data, config.islands), config.data.sharding == "own", transport),
        lock=handle,
        shelf=shelf,
        writes_from_start=world.writes or (site and not is_locked(config.directory)),
        session=session,
        record=record,
        influence=measures(config, data, islands, sync.state),
    )


def _sync_of(
    config: RunConfig, models: list[nn.Module], islands: list[PlainIsland], members: Membership, turns: bool
) -> LocalSGD:
    """The sync of the local islands. turns: they take turns on the one model."""
    spec = config.sync.spec(config.seed)
    sync = LocalSGD.of(
        dataclasses.replace(spec, buffers=_rules_of(config, islands[0].model, members.mesh is None)),
        models if turns else [i.model for i in islands],
        [i.inner for i in islands],
        island=islands[0].part if members.mesh is not None else None,
        transport=members.transport,
        turns=turns,
    )
    if turns:
        for island, replica in zip(islands, sync.replicas, strict=True):
            island.take_turn = partial(replica.take_turn, train=True)
    return sync


def is_site(config: RunConfig, world: World, members: Membership) -> bool:
    """Whether this process is the first one of a site that keeps its data: its people have no other to ask."""
    first = members.mesh is None or members.mesh.rank == 0
    return config.data.sharding == "own" and world.local_rank == 0 and first


def _build_islands(
    config: RunConfig, models: Sequence[nn.Module], members: Membership, compiled: bool
) -> list[PlainIsland]:
    local, mesh = members.transport.local, members.mesh
    on_cpu = next(models[0].parameters()).device.type == "cpu"
    islands = [build_island(config, m, k, compiled, mesh) for m, k in zip(models, local, strict=True)]
    if mesh is not None and on_cpu:
        members.close_listeners("islands")  # of groups that an island made for itself
    return islands


def _agree_on_session(members: Membership) -> str:
    own = torch.frombuffer(bytearray(os.urandom(8)), dtype=torch.uint8)
    everyone = members.everyone
    return bytes(everyone.gather([own] * len(everyone.local))[0].numpy()).hex()
