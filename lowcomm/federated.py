"""What a federation wants to know at the end: each client's loss before and after, and what it would have had alone.

    before       the untuned model                       after        the global model
    own          the client's own model (private factors, its rank)
    local        tuned on the client's data alone, as many steps
    centralised  tuned on all data together: each step takes one batch of every client; not where sites keep their data

Losses are nats per token on each client's own held-out text; `mean` weighs clients equally, `worst` is the mean over
the worst tenth of the clients (at least one); `percentiles`, `spread` (standard deviation) and `helped` (the fraction
of clients that end below what they had before, or alone) say how fairly the gain is shared. Written to clients.json;
baselines cost as much training twice again. `membership`: mean over the clients of attacks on the global model
(`privacy.membership_inference`), on the sequences that a client trained first against its held-out ones, and of the
loss attack on the `untuned` model: what it finds is how these texts differ, not who was trained on.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lowcomm.data import Shard
from lowcomm.island.scalars import ScalarOptimizer
from lowcomm.island_kinds import build_island
from lowcomm.model import token_losses
from lowcomm.privacy.membership_inference import FIGURES, attacks
from lowcomm.report.privacy import attack_in_words
from lowcomm.report.verdict import client_lines
from lowcomm.run.assembly import Run, build_models
from lowcomm.run.finale import with_global_weights
from lowcomm.run.privacy_spent import training_shards
from lowcomm.run.run_dir import write_json
from lowcomm.types import IGNORED, counted

if TYPE_CHECKING:
    from lowcomm.config import RunConfig

Batches = Sequence[tuple[Tensor, Tensor]]


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Batches, device: torch.device) -> float:
    """Nats per token; NaN without batches."""
    training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for inputs, targets in batches:
        losses = token_losses(model, inputs.to(device), targets.to(device))
        total, tokens = total + float(losses.double().sum()), tokens + counted(targets)
    model.train(training)
    return total / tokens if tokens else math.nan


@torch.no_grad()
def sequence_losses(model: nn.Module, batches: Batches, device: torch.device) -> Tensor:
    """Nats per token that counts of each sequence, fp64 [sequences]."""
    training = model.training
    model.eval()
    sums = [token_losses(model, x.to(device), y.to(device)).view(len(y), -1).double().sum(dim=1) for x, y in batches]
    counts = [(y != IGNORED).sum(dim=1).clamp(min=1).to(device) for _, y in batches]
    found = [total / count for total, count in zip(sums, counts, strict=True)]
    model.train(training)
    return torch.cat(found).double().cpu()


def trained_batches(shard: Shard, batches: int, sequences: int) -> Batches:
    """The first `sequences` different sequences of the first `batches` batches, one by one."""
    seen: dict[bytes, tuple[Tensor, Tensor]] = {}
    for _ in range(batches):
        inputs, targets = shard.next_batch()
        for x, y in zip(inputs, targets, strict=True):
            seen.setdefault(x.numpy().tobytes() + y.numpy().tobytes(), (x[None], y[None]))
        if len(seen) >= sequences:
            break
    return list(seen.values())[:sequences]


def train_alone(config: RunConfig, model: nn.Module, shards: Sequence[Shard], steps: int) -> None:
    """Train a model without any sync and without noise, on one batch of each shard per step."""
    plain = dataclasses.replace(config, steps=steps, sync=dataclasses.replace(config.sync, privacy=None))
    island = build_island(plain, model, 0, False, None)
    for step in range(steps):
        island.backward([shard.next_batch() for shard in shards])
        if isinstance(island.inner, ScalarOptimizer) and island.inner.row is not None:
            island.inner.hear(island.inner.row[None])
        island.update(step)


def report_clients(run: Run) -> None:
    """Evaluate every client, with baselines if asked for; write clients.json. Every island takes part."""
    config, transport = run.config, run.sync.transport
    device = run.islands[0].device
    everyone = range(transport.islands)
    batches = [run.data.own_validation_batches(k) for k in everyone]
    fresh = build_models(config, run.data, 1, device)[0]
    columns: dict[str, list[float]] = {k: [math.nan] * transport.islands for k in ("before", "after", "own", "local")}
    for k, replica in zip(transport.local, run.sync.replicas, strict=True):
        columns["before"][k] = mean_loss(fresh, batches[k], device)
        if not replica.idle:
            replica.take_turn()
            columns["own"][k] = mean_loss(replica.model, batches[k], device)
    with with_global_weights(run.sync.state):
        for k, replica in zip(transport.local, run.sync.replicas, strict=True):
            columns["after"][k] = mean_loss(run.islands[0].model, batches[k], device)
            if replica.idle:  # it has these weights
                columns["own"][k] = columns["after"][k]
    if config.eval.baselines:
        for k in transport.local:
            alone = build_models(config, run.data, 1, device)[0]
            train_alone(config, alone, [run.data.shard(k)], config.steps)
            columns["local"][k] = mean_loss(alone, batches[k], device)
    table = _gathered(run, columns)
    if config.eval.baselines and config.data.sharding != "own":
        table["centralised"] = _centralised(run, batches)
    membership = _membership(run, batches, fresh) if config.eval.membership else {}
    _conclude(run, table, membership)


def _membership(run: Run, batches: Sequence[Batches], fresh: nn.Module) -> dict[str, dict[str, float]]:
    """Means over the clients with held-out text of the attacks' figures; empty without any."""
    config, transport, device = run.config, run.sync.transport, run.islands[0].device
    keys = [(attack, figure) for attack in ("loss", "calibrated", "untuned") for figure in FIGURES]
    columns = {"/".join(key): [math.nan] * transport.islands for key in keys}
    with with_global_weights(run.sync.state):
        for k, shard in zip(transport.local, training_shards(run.data, run.sync.state), strict=True):
            held = sum(len(targets) for _, targets in batches[k])
            if not held:
                continue
            trained = trained_batches(shard, config.steps * config.inner.accumulation, held)
            if not trained:  # Poisson batches may all be empty
                continue
            models = (fresh, run.islands[0].model)
            inside, outside = (
                (sequence_losses(models[0], side, device), sequence_losses(models[1], side, device))
                for side in (trained, batches[k])
            )
            found = attacks(inside, outside)
            for attack, figure in keys:
                columns[f"{attack}/{figure}"][k] = found[attack][figure]
    means: dict[str, dict[str, float]] = {}
    for name, values in _gathered(run, columns).items():
        known = [v for v in values if not math.isnan(v)]
        attack, figure = name.split("/")
        if known:  # errors of single clients are independent
            total = math.hypot(*known) if figure == "auc_error" else sum(known)
            means.setdefault(attack, {})[figure] = total / len(known)
    return means


def _gathered(run: Run, columns: dict[str, list[float]]) -> dict[str, list[float]]:
    """Each island's own entry of each column, from whoever has it, but for islands that are lost."""
    transport = run.sync.transport
    rows = [torch.tensor([columns[c][k] for c in columns], dtype=torch.float64) for k in transport.local]
    found = transport.gather(rows)[transport.present].tolist()
    return {column: [row[i] for row in found] for i, column in enumerate(columns)}


def _centralised(run: Run, batches: Sequence[Batches]) -> list[float]:
    """One model on all data, in the first process; the others wait."""
    config, transport = run.config, run.sync.transport
    losses = [0.0] * transport.islands
    if run.world.rank == 0:
        device = run.islands[0].device
        model = build_models(config, run.data, 1, device)[0]
        train_alone(config, model, [run.data.shard(k) for k in range(transport.islands)], config.steps)
        losses = [mean_loss(model, b, device) for b in batches]
    rows = [torch.tensor(losses, dtype=torch.float64)] * len(transport.local)
    return transport.gather(rows)[0].tolist()


def _conclude(run: Run, table: dict[str, list[float]], membership: Mapping[str, Mapping[str, float]]) -> None:
    known = {column: values for column, values in table.items() if not any(math.isnan(v) for v in values)}
    mean = {column: sum(values) / len(values) for column, values in known.items()}
    names = client_names(run)
    found: dict[str, object] = {"names": names, "clients": known, "mean": mean}
    found["worst_10pct"] = {column: worst_tenth(values) for column, values in known.items()}
    found["percentiles"] = {column: percentiles(values) for column, values in known.items()}
    found["spread"] = {column: statistics.pstdev(values) for column, values in known.items()}
    found["helped"] = helped(known)
    if membership:
        found["membership"] = membership
        run.progress.note(attack_in_words(membership))
    if run.writes:
        write_json(run.directory / "clients.json", found)
    run.progress.note("")
    for line in client_lines(names, known):
        run.progress.note(line)
    run.progress.note("")


def client_names(run: Run) -> list[str]:
    """Of the islands that are present: the one label of a client's text (its folder), else its number."""
    clients = (run.data.partition or {}).get("clients", [])
    what = "site" if run.config.data.sharding == "own" else "client"
    labels = {int(c["client"]): list(c["train_labels"]) for c in clients}
    single = {k: found[0] for k, found in labels.items() if len(found) == 1 and found[0]}
    clear = len(set(single.values())) == len(labels)
    return [single[k] if clear and k in single else f"{what} {k}" for k in run.sync.transport.present]


def percentiles(losses: Sequence[float]) -> dict[str, float]:
    """The 10th, 50th and 90th percentile of the clients' losses, between two clients by their distance."""
    at = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    found = torch.quantile(torch.tensor(losses, dtype=torch.float64), at).tolist()
    return {f"p{name}": value for name, value in zip((10, 50, 90), found, strict=True)}


def helped(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Fractions of the clients whose own model ends below what they had before, and below what they had alone."""
    return {
        f"below_{other}": sum(a < b for a, b in zip(columns["own"], columns[other], strict=True)) / len(columns["own"])
        for other in ("before", "local")
        if other in columns and "own" in columns
    }


def worst_tenth(losses: Sequence[float]) -> float:
    """Mean over the largest tenth of the losses, at least one."""
    count = max(1, math.ceil(len(losses) / 10))
    return sum(sorted(losses, reverse=True)[:count]) / count
