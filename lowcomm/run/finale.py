"""Evaluation of the global weights, and the summary of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from lowcomm.hooks.attack import Corruption
from lowcomm.hooks.lora import at_server_scale
from lowcomm.island.part import gather_texts
from lowcomm.run.assembly import Run
from lowcomm.run.poisoned import success_of
from lowcomm.run.privacy_spent import privacy_spent
from lowcomm.run.run_dir import write_json
from lowcomm.state.digest import sha256_weights
from lowcomm.state.state import SyncState
from lowcomm.sync.consensus import global_weights
from lowcomm.types import IGNORED


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Loss in nats per token and bits per byte of the text that the tokens stand for."""

    loss: float
    bits_per_byte: float
    consensus_distance: float | None = None
    """Mean squared distance of the islands' anchors from their mean, which was evaluated; None: they share one."""

    attack_success: float | None = None
    """What a collective's signal brings about (`CollectiveAction`); None: no attack has one."""
    directions: float | None = None
    """Mean of the islands' own losses minus that of their mean (`run.sharpness`); None: not asked for."""

    @property
    def consensus(self) -> dict[str, float]:
        """Distance and sharpness as fields of a log; nothing where there is none."""
        found = {"consensus_distance": self.consensus_distance, "average_direction_sharpness": self.directions}
        return {key: value for key, value in found.items() if value is not None}


@contextmanager
def with_global_weights(state: SyncState) -> Iterator[None]:
    """Within, the first model holds the global weights: fragments come at different steps and may have trained on."""
    state.worker.wait()
    state.read_back()
    replica = state.replicas[0]
    if replica.idle:  # as a client without weights of its own it has these
        replica.take_turn()
        yield
        return
    own = [replica.own(name) for f in state.fragments for name in f.names]
    replica.take_turn()
    merged = [view for named in global_weights(state) for view in named.values()]
    # weights that are the global ones (training by scalars) need no copy
    pairs = zip(own, merged, strict=True)
    kept = [p.detach() if p.data_ptr() == view.data_ptr() else p.detach().clone() for p, view in pairs]
    with torch.no_grad():
        for p, view in zip(own, merged, strict=True):
            p.copy_(view)
    _written(state)
    try:
        with at_server_scale(state.spec.aggregator, replica.model, state.transport.local[0]):
            yield
    finally:
        with torch.no_grad():
            for p, old in zip(own, kept, strict=True):
                p.copy_(old)
        _written(state)


def _written(state: SyncState) -> None:
    for index in range(len(state.fragments)):
        state.written(index, [0])


@torch.no_grad()
def evaluate(run: Run) -> Evaluation:
    """Validation loss; the batches are shared out over the processes and summed in batch order: the same bits.

    Sites that keep their data each take all of their own, summed in island order.
    """
    total = _summed(run)
    while round(total[3]) < len(run.data.validation_batches()):  # an island died with its share
        total = _summed(run)
    nats, tokens, text_bytes, _ = total
    mean = run.sync.state.consensus
    return Evaluation(
        loss=nats / tokens,
        bits_per_byte=nats / math.log(2) / max(text_bytes, 1.0),
        consensus_distance=None if mean is None else mean.distance,
        attack_success=_success(run),
    )


def _success(run: Run) -> float | None:
    model = run.islands[0].model
    model.eval()
    found = success_of(run.config.sync.attack, run.islands[0], run.data.validation_batches())
    model.train()
    return found


def _summed(run: Run) -> list[float]:
    """Nats, tokens and bytes of the text over all batches, and the batches that were evaluated."""
    batches = run.data.validation_batches()
    transport = run.sync.transport
    own = run.config.data.sharding == "own"
    alone = own or len(transport.local) == transport.islands
    there = transport.present
    mine = range(len(batches)) if alone else range(there.index(transport.local[0]), len(batches), len(there))
    island = run.islands[0]
    island.model.eval()
    sums = torch.zeros(len(batches), 4, dtype=torch.float64)
    for index, (inputs, targets) in enumerate(batches):
        if index in mine:
            losses = island.token_losses(inputs, targets)
            learnt = targets[targets != IGNORED]
            text_bytes = run.data.token_bytes[learnt].sum()
            sums[index] = torch.tensor([float(losses.double().sum()), float(learnt.numel()), float(text_bytes), 1.0])
    island.model.train()
    sums = sums.sum(dim=0, keepdim=True) if own else sums
    zeros = torch.zeros_like(sums)
    rows = [sums.flatten()] + [zeros.flatten()] * (len(transport.local) - 1)
    return transport.gather(rows).sum(dim=0).view_as(sums).sum(dim=0).tolist()


def write_summary(run: Run, status: str, wall_s: float, evaluation: Evaluation | None = None) -> None:
    """summary.json. With an evaluation every island takes part, since means over islands are asked for."""
    sync, transport, mesh = run.sync, run.sync.transport, run.members.mesh
    rows = _counted(run, wall_s)
    there = sync.state.exchange.stands_for_all == "first" or sync.state.consensus is not None
    weights_sha256 = sha256_weights(sync.weights()) if there else ""  # of islands' own weights there is no mean yet
    if mesh is not None and status != "failed":  # of a failure the other ranks may know nothing
        rows = [_of_island(mesh.rows(row)) for row in rows]
        weights_sha256 = sha256("".join(gather_texts(mesh, weights_sha256)).encode()).hexdigest()
    alike = mesh is None or status != "failed"
    elements = run.islands[0].parameter_counts() if alike else (None, None)
    table = torch.stack(rows)
    if evaluation is not None:
        table = transport.gather(rows)[transport.present]  # zeros stand for the lost
    if not run.writes:
        return
    tokens, sent, received, blocked_s, sync_s, wall, _, waited_s, _, _ = table.mean(dim=0).tolist()
    misses, peak, link = int(table[:, 6].sum()), float(table[:, 8].max()), float(table[:, 9].min())
    write_json(
        run.directory / "summary.json",
        {
            "status": status,
            "name": run.config.name,
            "parameters": elements[0],
            "parameters_trainable": elements[1],
            "val_loss": evaluation.loss if evaluation else None,
            "val_bpb": evaluation.bits_per_byte if evaluation else None,
            "tokens": round(tokens * (len(table) if len(table) > len(rows) else transport.islands)),
            "steps": sync.step,
            "rounds": sync.round,
            "islands": transport.islands,
            "lost": {str(island): missed for island, missed in run.lost.items()},
            "bytes_sent": round(sent),
            "bytes_received": round(received),
            "wall_s": wall,
            "blocked_s": blocked_s,
            "sync_s": sync_s,
            "utilisation": 1 - blocked_s / wall if wall > 0 else None,
            "deadline_misses": misses,
            "deadline_waited_s": waited_s,
            "peak_bytes_per_s": peak or None,
            "link_bytes_per_s": link if math.isfinite(link) else None,
            "weights_sha256": weights_sha256 or None,
            **(evaluation.consensus if evaluation else {}),
            "privacy": privacy_spent(sync.state, run.ledger),
            "step_hashes": None if run.record is None else run.record.summary(),
            "attack": _attack(run, evaluation),
        },
    )


def _attack(run: Run, evaluation: Evaluation | None) -> dict[str, object] | None:
    """Its name, its islands, and what it has brought about, where that is known."""
    found = next((h.summary() for h in run.sync.state.hooks if isinstance(h, Corruption)), None)
    success = None if evaluation is None else evaluation.attack_success
    return found if found is None or success is None else {**found, "success": success}


def _counted(run: Run, wall_s: float) -> list[Tensor]:
    """One row per local island, or of this rank: what `write_summary` brings together."""
    sync, transport, late = run.sync, run.sync.transport, run.sync.deadlines
    return [
        torch.tensor(
            [
                *(
                    r.tokens,
                    transport.sent_bytes[i],
                    transport.received_bytes[i],
                    sync.state.blocked_s,
                    sync.state.sync_s,
                    wall_s,
                ),
                *(late.misses, late.waited_s, late.peak_bytes_per_s or 0.0, transport.link_bytes_per_s or math.inf),
            ],
            dtype=torch.float64,
        )
        for i, r in enumerate(sync.replicas)
    ]


def _of_island(rows: Tensor) -> Tensor:
    """One row for an island of several ranks: tokens, bytes and misses of all, the longest times, the slowest link."""
    worst = torch.cat([rows[:, :9].amax(dim=0), rows[:, 9:].amin(dim=0)])
    summed = torch.tensor([0, 1, 2, 6])
    worst[summed] = rows[:, summed].sum(dim=0)
    return worst
