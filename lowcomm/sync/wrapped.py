"""Refuses what does not go into a loop of one's own: models that another library averages or has cut, two passes, two
syncs on one optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakSet

import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from lowcomm.exchange.gossip import Gossip
from lowcomm.island.part import Part
from lowcomm.state.spec import SyncSpec
from lowcomm.types import ConfigError

ENGINES = {
    "DeepSpeedEngine": "lowcomm.deepspeed.attach(engine, every=...)",
    "FullyShardedDataParallel": "torch.distributed.fsdp.fully_shard over one island's ranks, and island=FSDPPart(mesh)",
}
"""Wrappers by the name of their class, whose modules are not imported here."""


_counted: WeakSet[Optimizer] = WeakSet()
"""Inner optimizers whose steps a sync counts."""


def claim(inner: Optimizer) -> None:
    """Raise ConfigError for an optimizer whose steps another sync counts: both would merge, the mean counts twice."""
    if inner in _counted:
        raise ConfigError(
            f"inner = {type(inner).__name__} is not allowed: its steps are counted by a sync that was made before, and "
            "each of the two would apply the outer step. Fix: make a new optimizer for the new sync (load_state_dict "
            "keeps the moments), or use the first sync"
        )
    _counted.add(inner)


def check_unwrapped(models: Sequence[nn.Module], island: Part | None) -> None:
    """Raise ConfigError for a model that gradients would be averaged of in every step, or that lies here in part."""
    for model in models:
        for name, module in model.named_modules():
            _check_module(f"model.{name}" if name else "model", module, island)
        if island is None:
            parameters = model.named_parameters()
            cut = next((n for n, p in parameters if isinstance(p, DTensor) and p.device_mesh.size() > 1), None)
            if cut is not None:
                raise ConfigError(
                    f"model: parameter {cut} is a DTensor, of which each rank holds a part. "
                    "Fix: island=lowcomm.island.FSDPPart(mesh), with the mesh of one island's ranks"
                )


def _check_module(name: str, module: nn.Module, island: Part | None) -> None:
    kind = type(module).__name__
    if isinstance(module, DistributedDataParallel):
        ranks = dist.get_process_group_ranks(module.process_group)
        mesh = None if island is None else island.mesh
        inside = [dist.get_rank()] if mesh is None else dist.get_process_group_ranks(mesh.inside)
        if set(ranks) <= set(inside):
            return
        raise ConfigError(
            f"{name} = {kind} over ranks {ranks} is not allowed: it averages gradients over the islands in every step. "
            f"Fix: pass the model inside, {name}.module, and train that one"
        )
    if isinstance(module, DataParallel):
        fix = "one process per GPU: torchrun"
        raise ConfigError(f"{name} = {kind} is not allowed: its copies are no islands. Fix: {fix}")
    if kind in ENGINES:
        raise ConfigError(f"{name} = {kind} is not allowed: it has its own optimizer step. Fix: {ENGINES[kind]}")


def check_passes(spec: SyncSpec) -> None:
    """Raise ConfigError for an objective whose second pass nobody would take, or a rule that asks for losses."""
    objective, choice = spec.clients.objective, spec.exchange
    if isinstance(choice, Gossip) and choice.rule.judges:
        raise ConfigError(
            f"exchange.rule = {type(choice.rule).__name__} is not allowed in a loop of one's own: it mixes by losses "
            "on held-out text. Fix: use lowcomm train, or Cooperation()"
        )
    if objective is not None and objective.passes > 1:
        raise ConfigError(
            f"clients.objective = {type(objective).__name__} is not allowed in a loop of one's own, which takes the "
            "backward passes. Fix: leave it out and call lowcomm.local.ascend between two of them, or use lowcomm train"
        )
