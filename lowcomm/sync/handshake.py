"""The handshake before the first round: islands compare versions, settings, names, shapes and dtypes.

A difference is refused with both sides' values, since a run with two shapes of model ends in garbage, not in an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lowcomm.island.part import Part, prove_shares
from lowcomm.island.scalars import ScalarOptimizer
from lowcomm.state.anchor import Anchor
from lowcomm.state.buffer_pool import BufferPool
from lowcomm.state.conflict import Conflict
from lowcomm.state.coverage import Coverage, check_partition, prove
from lowcomm.state.digest import digest_all
from lowcomm.state.fragment import Fragment
from lowcomm.state.replica import Replica
from lowcomm.state.spec import Clients, SyncSpec
from lowcomm.state.state import SyncState
from lowcomm.state.storage import check_storage
from lowcomm.sync.compatibility import check_islands
from lowcomm.sync.data_parallel import share_storage
from lowcomm.transport import Collective, Transport, default_transport
from lowcomm.transport.base import texts_of
from lowcomm.types import ConfigError, DivergenceError, require
from lowcomm.version import __version__

Facts = Mapping[str, str | int | float | Mapping[str, str]]
"""What must be equal everywhere: JSON scalars, or a mapping (tensor name -> shape and dtype)."""


def find_transport(models: int, part: Part | None) -> Transport:
    """The transport of a loop that names none: among the ranks that hold the same part, or the default."""
    if part is None or part.mesh is None:
        return default_transport(models)
    return Collective(part.mesh.peers, beside=part.mesh.beside)


def check_counts(models: int, inners: int, transport: Transport) -> None:
    """Raise ConfigError unless each island of this process has one model and one inner optimizer."""
    local = len(transport.local)
    legal = f"{local}, the islands that the transport has in this process"
    require(models == local, "model", models, legal, "pass one model per local island, or another transport")
    require(inners == models, "inner", inners, f"{models}, one per model", "pass one inner optimizer per model")


def compare(transport: Transport, facts: Sequence[Facts]) -> None:
    """Raise DivergenceError on every island if any island's facts differ, naming the first that does.

    facts: one per local island.
    """
    made = {id(f): _bytes(json.dumps(f, sort_keys=True).encode()) for f in facts}  # of one model: once
    rows = transport.gather_sized([made[id(f)] for f in facts])
    own = json.loads(bytes(made[id(facts[0])].numpy()))
    for island, theirs in enumerate(texts_of(rows)):
        theirs = theirs if isinstance(theirs, dict) else {}
        for key in sorted({*own, *theirs}):
            if own.get(key) != theirs.get(key):
                _refuse(key, own.get(key), theirs.get(key), transport.local[0], island)


def _refuse(key: str, mine: object, theirs: object, me: int, them: int) -> None:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        name = next(n for n in [*mine, *theirs] if mine.get(n) != theirs.get(n))
        key, mine, theirs = f"{key}[{name}]", mine.get(name), theirs.get(name)
    raise DivergenceError(
        f"islands {me} and {them} disagree on {key}: {mine!r} against {theirs!r}. "
        "Start all with the same code, recipe and model."
    )


def prepare(state: SyncState, own_anchors: bool) -> Fragment | None:
    """Prove coverage, shake hands, agree on the first weights; fills `state.fragments` and `state.anchors`.

    Returns a pseudo-fragment of the buffers to average, if any. Islands that start from other weights take those of
    island 0, as under DDP. own_anchors: each local island gets anchors of its own.
    """
    spec, transport, replicas = state.spec, state.transport, state.replicas
    each = {id(r.model): r for r in reversed(replicas)}  # the first replica of each model
    coverages = {key: prove(r.model, spec.buffers) for key, r in each.items()}
    check_storage([r.model for r in (each.values() if replicas[0].shares_model else replicas)])
    parameters = {key: list(r.model.parameters()) for key, r in each.items()}
    for replica in replicas:
        replica.part.check_inner(parameters[id(replica.model)], replica.inner)
    first = replicas[0]
    coverage = coverages[id(first.model)]
    mesh = first.part.mesh
    ranks = 1 if mesh is None else mesh.size
    check_islands(spec, transport.islands, ranks, coverage.averaged_buffers, list(first.params))
    _check_inner(spec, first)
    parts = _partition(spec, first, coverage)
    facts = {key: _facts(spec, transport, r, coverages[key]) for key, r in each.items()}
    compare(transport, [facts[id(r.model)] for r in replicas])
    transport.goes_on = spec.clients.secure is not None or own_anchors  # now that all are known to have it alike
    one = next(iter(first.held.values()))
    device = torch.device(spec.outer_device) if spec.outer_device is not None else one.device
    pool = BufferPool(device)
    held = [{n: first.held[n] for n in p if n in first.held} for p in parts]
    state.fragments = [Fragment(h, transport.islands, device, p, pool) for h, p in zip(held, parts, strict=True)]
    every = tuple(range(len(replicas)))
    locals_ = [(i,) for i in every] if own_anchors else [every]
    state.anchors = [[Anchor(f, j, local) for local in locals_] for j, f in enumerate(state.fragments)]
    averaged = {n: first.buffers[n] for n in coverage.averaged_buffers}
    state.run_id = state.attempt = _agree_on_weights_and_run(transport, replicas)
    for index, anchors in enumerate(state.anchors):
        state.written(index, every)  # the ranks of an island, too, start from the same weights
        for anchor in anchors:
            anchor.read(first.tensors(anchor.fragment))
    share_storage(first, state.anchors)
    state.deadlines.restart()
    return Fragment(averaged, transport.islands, device, pool=pool) if averaged else None


def _check_inner(spec: SyncSpec, first: Replica) -> None:
    if spec.exchange is not None and isinstance(first.inner, ScalarOptimizer):
        other = f"sync.exchange = {type(spec.exchange).__name__}"
        why, fix = "its islands share every step and so their weights", "use an optimizer with a backward pass"
        raise ConfigError(str(Conflict("inner.optimizer", "ZerothOrder", other, why, fix)))
    if spec.clients.objective is not None and isinstance(first.inner, ScalarOptimizer):
        other = f"sync.objective = {type(spec.clients.objective).__name__}"
        fix = "use an optimizer with a backward pass"
        raise ConfigError(str(Conflict("inner.optimizer", "ZerothOrder", other, "it changes gradients", fix)))


def _partition(spec: SyncSpec, first: Replica, coverage: Coverage) -> list[list[str]]:
    """Parameters by fragment; together the ranks of an island hold all of each.

    A rank that holds nothing of one (ZeRO cuts across parameters, a pipeline has them elsewhere) takes part in its
    exchanges with a filler, so that all ranks of an island do the same things in the same order.
    """
    expected = first.part.expected(first.model)
    mesh = first.part.mesh
    if mesh is not None:
        settings = f"{spec.every} {spec.outer} {spec.codec} {spec.schedule}"
        expected = prove_shares(mesh, first.held, expected, settings)
        first.elements = sum(expected.values())
    parts = spec.schedule.partition(expected)
    check_partition(coverage.trainable if mesh is None else list(expected), parts)
    if mesh is None:
        return parts
    return [part if any(n in first.held for n in part) else [first.fill(i), *part] for i, part in enumerate(parts)]


def _agree_on_weights_and_run(transport: Transport, replicas: Sequence[Replica]) -> int:
    """Take over the weights of island 0 where they differ, and its number of the run, which is returned: 64 bits.

    The number comes from the operating system, so that a run of the same seed and recipe has another one.
    """
    number = transport.inside(_bytes(os.urandom(8)))[0]  # one for all ranks of an island
    made = {id(r.held): torch.cat([_bytes(digest_all(r.held)), number]) for r in replicas}
    table = transport.gather([made[id(r.held)] for r in replicas])
    if bool((table[:, :-8] != table[0, :-8]).any()):
        for name in replicas[0].held:
            transport.broadcast([r.held[name].detach() for r in replicas])
    return int.from_bytes(bytes(table[0, -8:].numpy()), "little")


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _facts(spec: SyncSpec, transport: Transport, replica: Replica, coverage: Coverage) -> Facts:
    parameters = dict(replica.model.named_parameters())
    shards = {n: f"{tuple(t.shape)} {t.dtype}" for n, t in replica.held.items()}
    return {
        "version": __version__,
        "islands": transport.islands,
        "every": spec.every,
        "seed": spec.seed,
        "outer": repr(spec.outer),
        "codec": repr(spec.codec),
        "schedule": repr(spec.schedule),
        "aggregator": repr(spec.aggregator),
        **({"privacy": repr(spec.privacy)} if spec.privacy is not None else {}),
        **({"clients": repr(spec.clients)} if spec.clients != Clients() else {}),
        **({"fresh_inner": True} if spec.clients.fresh_inner else {}),
        **({"exchange": repr(spec.exchange)} if spec.exchange is not None else {}),
        **({"on_late": spec.on_late} if spec.on_late != "wait" else {}),
        "tensors": {n: f"{tuple(t.shape)} {t.dtype}" for n, t in {**parameters, **replica.buffers}.items()},
        "trainable": " ".join(coverage.trainable),
        "frozen weights": digest_all(replica.part.frozen(replica.model, coverage.frozen)).hex(),
        **({"shards": shards} if replica.part.mesh is not None else {}),
    }
