"""The handshake before the first round: islands compare versions, settings, names, shapes and dtypes.

A difference is refused with both sides' values, since a run with two shapes of model ends in garbage, not in an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from lowcomm.clients import Clients, check_clients
from lowcomm.island.part import Part, prove_shares
from lowcomm.round.coverage import BufferRule, Coverage, check_partition, prove
from lowcomm.round.digest import digest_all
from lowcomm.round.exchange import check_fit
from lowcomm.round.fragment import Fragment
from lowcomm.round.gradients import hold_once
from lowcomm.round.guard import check_privacy, check_protectable
from lowcomm.round.lora_sync import check_lora, loosen
from lowcomm.round.replica import Replica
from lowcomm.round.scratch import Scratch
from lowcomm.round.secure_checks import check_maskable, check_secure
from lowcomm.round.wrapped import check_unwrapped
from lowcomm.transport.base import Transport
from lowcomm.types import DivergenceError, require
from lowcomm.version import __version__

if TYPE_CHECKING:
    from lowcomm.sync import LocalSGD

Facts = Mapping[str, str | int | float | Mapping[str, str]]
"""What must be equal everywhere: JSON scalars, or a mapping (tensor name -> shape and dtype)."""


def check_parts(sync: LocalSGD, models: Sequence[nn.Module], island: Part | None) -> None:
    """Raise ConfigError for settings out of range or parts that do not fit; ready the models for a LoRA rule."""
    check_unwrapped(models, island)
    require(0 < sync.quorum <= 1, "quorum", sync.quorum, "0 < quorum <= 1", "0.5 needs half of the islands")
    for part in (sync.outer, sync.codec, sync.aggregator):
        part.check()
    check_fit(sync.codec, sync.aggregator)
    check_privacy(sync.privacy, sync.aggregator, sync.codec, sync.schedule, sync.clients.sampling)
    check_secure(sync.clients.secure, sync.codec, sync.aggregator, sync.schedule)
    sync.schedule.check(sync.every, None)
    check_lora(sync.aggregator, sync.codec, sync.outer, sync.schedule, sync.clients.objective)
    loosen(models, sync.aggregator)


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
    texts = [json.dumps(f, sort_keys=True).encode() for f in facts]
    rows = transport.gather_sized([torch.frombuffer(bytearray(t), dtype=torch.uint8) for t in texts])
    own = json.loads(texts[0])
    for island, row in enumerate(rows):
        theirs = json.loads(bytes(row.numpy()))
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


def prepare(
    sync: LocalSGD, buffers: Mapping[str, BufferRule], outer_device: torch.device | str | None
) -> tuple[list[Fragment], Fragment | None]:
    """Prove coverage, shake hands, agree on the first weights.

    Returns the fragments, which hold the global weights, and a pseudo-fragment of the buffers to average, if any.
    Islands that start from other weights take those of island 0, as under DDP.
    """
    coverages = [prove(r.model, buffers) for r in sync.replicas]
    for replica in sync.replicas:
        replica.part.check_inner(list(replica.params.values()), replica.inner)
    coverage, first = coverages[0], sync.replicas[0]
    check_protectable(sync, coverage.averaged_buffers)
    mesh = first.part.mesh
    check_maskable(sync.clients.secure, 1 if mesh is None else mesh.size, coverage.averaged_buffers)
    settings = (sync.clients, sync.transport.islands, sync.every, sync.codec, sync.schedule, sync.privacy)
    check_clients(*settings)
    parts = _partition(sync, first, coverage)
    compare(sync.transport, [_facts(sync, r, c) for r, c in zip(sync.replicas, coverages, strict=True)])
    sync.transport.goes_on = sync.clients.secure is not None  # now that all are known to have it alike
    device = torch.device(outer_device) if outer_device is not None else next(iter(first.held.values())).device
    islands = sync.transport.islands
    scratch = Scratch(device)
    held = [{n: first.held[n] for n in p if n in first.held} for p in parts]
    fragments = [Fragment(h, islands, device, p, scratch) for h, p in zip(held, parts, strict=True)]
    averaged = {n: first.buffers[n] for n in coverage.averaged_buffers}
    _agree_on_weights(sync)
    for fragment in fragments:
        for replica in sync.replicas:
            replica.written(fragment)  # the ranks of an island, too, start from the same weights
        fragment.read(first.tensors(fragment))
    hold_once(first, fragments)
    sync.deadlines.restart()
    return fragments, Fragment(averaged, islands, device, scratch=scratch) if averaged else None


def _partition(sync: LocalSGD, first: Replica, coverage: Coverage) -> list[list[str]]:
    """Parameters by fragment; together the ranks of an island hold all of each.

    A rank that holds nothing of one (ZeRO cuts across parameters, a pipeline has them elsewhere) takes part in its
    exchanges with a filler, so that all ranks of an island do the same things in the same order.
    """
    expected = first.part.expected(first.model)
    mesh = first.part.mesh
    if mesh is not None:
        settings = f"{sync.every} {sync.outer} {sync.codec} {sync.schedule}"
        expected = prove_shares(mesh, first.held, expected, settings)
        first.elements = sum(expected.values())
    parts = sync.schedule.partition(expected)
    check_partition(coverage.trainable if mesh is None else list(expected), parts)
    if mesh is None:
        return parts
    return [part if any(n in first.held for n in part) else [first.fill(i), *part] for i, part in enumerate(parts)]


def _agree_on_weights(sync: LocalSGD) -> None:
    rows = [torch.frombuffer(bytearray(digest_all(r.held)), dtype=torch.uint8) for r in sync.replicas]
    table = sync.transport.gather(rows)
    if bool((table != table[0]).any()):
        for name in sync.replicas[0].held:
            sync.transport.broadcast([r.held[name].detach() for r in sync.replicas])


def _facts(sync: LocalSGD, replica: Replica, coverage: Coverage) -> Facts:
    parameters = dict(replica.model.named_parameters())
    shards = {n: f"{tuple(t.shape)} {t.dtype}" for n, t in replica.held.items()}
    return {
        "version": __version__,
        "islands": sync.transport.islands,
        "every": sync.every,
        "seed": sync.seed,
        "outer": repr(sync.outer),
        "codec": repr(sync.codec),
        "schedule": repr(sync.schedule),
        "aggregator": repr(sync.aggregator),
        **({"privacy": repr(sync.privacy)} if sync.privacy is not None else {}),
        **({"clients": repr(sync.clients)} if sync.clients != Clients() else {}),
        **({"on_late": sync.deadlines.on_late} if sync.deadlines.on_late != "wait" else {}),
        "tensors": {n: f"{tuple(t.shape)} {t.dtype}" for n, t in {**parameters, **replica.buffers}.items()},
        "trainable": " ".join(coverage.trainable),
        "frozen weights": digest_all(replica.part.frozen(replica.model, coverage.frozen)).hex(),
        **({"shards": shards} if replica.part.mesh is not None else {}),
    }
