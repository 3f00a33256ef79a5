"""Faults of islands in the middle of a run: one of them, and the others go on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lowcomm import trainer
from lowcomm.codec import Codec, ErrorFeedback, Int4
from lowcomm.config import RunConfig, SyncConfig
from lowcomm.config_check import check
from lowcomm.island import BatchedIslands, PlainIsland
from lowcomm.schedule import EveryH, OneStepDelay, Schedule, Streaming
from lowcomm.state.checkpoint import global_part, load_global
from lowcomm.state.norms import MIN_ROUNDS, NormHistory
from lowcomm.state.report import SyncReport
from lowcomm.sync import LocalSGD
from lowcomm.trainer import train
from lowcomm.transport import Simulated
from lowcomm.transport.base import Altered
from lowcomm.types import ConfigError, UnusableError
from tests.support import runs, toy
from tests.support.toy import EVERY

EVEN = [1.0] * 4
"""Tokens of islands that do alike."""


def blow_up(sync: LocalSGD, island: int, factor: float = 1e6) -> None:
    """Finite weights far from all others, and moments to match."""
    with torch.no_grad():
        for p in sync.replicas[island].params.values():
            p.mul_(factor)


def build(
    islands: int = 3,
    norm_bound: float | None = 10.0,
    codec: Codec | None = None,
    schedule: Schedule | None = None,
) -> LocalSGD:
    models = [toy.Net() for _ in range(islands)]
    inners = [toy.adamw(m) for m in models]
    return LocalSGD(
        models, inners, every=EVERY, norm_bound=norm_bound, codec=codec, schedule=schedule, transport=Simulated(islands)
    )


def run(sync: LocalSGD, steps: int, bad_from: int | None = None) -> list[SyncReport]:
    """The reports of the rounds; island 1 is altered in the inner step before `bad_from`."""
    reports: list[SyncReport] = []
    sync.listeners.append(reports.append)
    for step in range(steps):
        toy.train_step(sync, step)
        if step + 2 == bad_from:
            blow_up(sync, 1)
    return reports


@pytest.mark.parametrize("codec", [None, ErrorFeedback(codec=Int4()), ErrorFeedback(codec=Int4(exchange="gather"))])
def test_finite_blow_up_is_left_out_with_both_numbers(codec: Codec | None) -> None:
    sync = build(codec=codec)
    run(sync, 4 * EVERY - 1)
    kept = {k: t.clone() for k, t in sync.state.codec_states[1][0].items()}
    before = {n: w.clone() for n, w in sync.weights().items()}
    blow_up(sync, 1)
    reports: list[SyncReport] = []
    sync.listeners.append(reports.append)
    toy.train_step(sync, 4 * EVERY - 1)
    assert list(reports[0].dropped) == [1]
    norm = reports[0].delta_norms[1]
    assert "sync.norm_bound = 10 times the usual" in reports[0].dropped[1] and f"{norm:.6g}" in reports[0].dropped[1]
    assert max(float((w - before[n]).abs().max()) for n, w in sync.weights().items()) < 1
    assert all(torch.equal(t, sync.state.codec_states[1][0][k]) for k, t in kept.items())
    assert not sync.replicas[1].inner.state and sync.replicas[0].inner.state
    for name, p in sync.replicas[1].params.items():
        assert torch.equal(p, sync.weights()[name]), name
    for step in range(4 * EVERY, 5 * EVERY):
        toy.train_step(sync, step)
    assert not reports[1].dropped and all(math.isfinite(n) for n in reports[1].delta_norms)


@pytest.mark.parametrize("schedule", [OneStepDelay(), Streaming(fragments=2, delay=1, by="size")])
def test_it_is_left_out_of_exchanges_beside_training(schedule: Schedule) -> None:
    sync = build(schedule=schedule)
    reports = run(sync, 8 * EVERY, bad_from=6 * EVERY)
    left_out = [r for r in reports if 1 in r.dropped]
    assert left_out and all("norm_bound" in r.dropped[1] for r in left_out)
    assert all(torch.isfinite(w).all() and w.abs().max() < 100 for w in sync.weights().values())


def test_without_a_bound_it_counts() -> None:
    sync = build(norm_bound=None)
    assert not any(r.dropped for r in run(sync, 4 * EVERY, bad_from=4 * EVERY))
    assert sync.state.norms[0].rounds == []


def test_norms_that_nobody_or_everybody_exceeds_are_usual() -> None:
    history = NormHistory(bound=10.0)
    for _ in range(MIN_ROUNDS - 1):
        history.add([1.0, 2.0, 1.0], [0.5, 0.5, 0.0])
    assert history.too_large([1e9, 1.0], EVEN, range(2)) == {}  # too early
    history.add([1.0, 2.0, 1.0], [0.5, 0.5, 0.0])
    assert list(history.too_large([1.0, 1.0, 21.0], EVEN, range(3))) == [2]
    assert history.too_large([1.0, 1.0, 19.0], EVEN, range(3)) == {}
    assert history.too_large([50.0, 60.0, 70.0], EVEN, range(3)) == {}  # all rose
    assert list(history.too_large([1.0, 60.0], EVEN, range(2))) == [1]
    assert history.too_large([60.0], EVEN, range(1)) == {}


def test_a_blow_up_before_any_round_is_left_out_where_two_others_contribute() -> None:
    history = NormHistory(bound=10.0)
    assert list(history.too_large([1.0, 2.0, 30.0], EVEN, range(3))) == [2]
    assert history.too_large([1.0, 2.0, 30.0], [1.0, 1.0, 40.0], range(3)) == {}  # it did 40 times their steps
    assert history.too_large([1.0, 2.0, 9.0], [1.0, 1.0, 0.1], range(3)) == {}  # few tokens, a usual norm
    assert history.too_large([1.0, 30.0], EVEN, range(2)) == {}  # which of the two?
    assert list(history.too_large([1.0, 30.0, 1.0, 30.0], EVEN, range(4))) == [1, 3]
    assert history.too_large([0.0, 0.0, 1.0], EVEN, range(3)) == {}


def test_an_island_that_blows_up_in_the_first_round_is_left_out() -> None:
    sync = build()
    reports = run(sync, 3 * EVERY, bad_from=EVERY)
    assert [1 in r.dropped for r in reports] == [True, False, False]
    assert max(float(w.abs().max()) for w in sync.weights().values()) < 10


def test_an_island_that_does_more_steps_than_the_others_is_usual() -> None:
    history = NormHistory(bound=10.0)
    for _ in range(MIN_ROUNDS):
        history.add([0.01, 0.01, 0.01, 5.0], [0.25] * 4)
    assert history.too_large([0.01, 0.01, 0.01, 6.0], EVEN, range(4)) == {}
    assert list(history.too_large([6.0, 0.01, 0.01, 6.0], EVEN, range(4))) == [0]


def test_norms_are_in_the_checkpoint() -> None:
    sync, fresh = build(), build()
    run(sync, 4 * EVERY)
    load_global(fresh.state, global_part(sync.state))
    assert fresh.state.norms[0].rounds == sync.state.norms[0].rounds
    tensors, values = global_part(sync.state)
    del values["norms"]  # of an older version
    load_global(fresh.state, (tensors, values))
    assert fresh.state.norms[0].rounds == []


@pytest.mark.parametrize("bound", [1.0, 0.0, -3.0, math.inf, math.nan])
def test_a_bound_out_of_range_is_refused(bound: float) -> None:
    with pytest.raises(ConfigError, match=r"sync\.norm_bound = .* is not allowed: a finite number above 1"):
        check(RunConfig(sync=SyncConfig(norm_bound=bound)), 2)
    with pytest.raises(ConfigError, match=r"norm_bound = .* is not allowed"):
        build(norm_bound=bound)


class Flips(Simulated):
    """A bit of the exponent flips in a vector that is summed, when it is told to."""

    flips = False

    def weighted_sum(self, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Altered:
        altered = super().weighted_sum(vectors, weights, out)
        if self.flips:
            out[3] = out[3].abs() * 2.0**100
        return altered


def test_a_mean_that_no_norms_allow_is_not_committed() -> None:
    wire = Flips(2)
    sync = toy.build(2, transport=wire)
    run(sync, 2 * EVERY - 1)
    before = {n: w.clone() for n, w in sync.weights().items()}
    wire.flips = True
    with pytest.raises(UnusableError, match=r"the mean of round 1 has the norm .* allow .* Nothing was committed"):
        toy.train_step(sync, 2 * EVERY - 1)
    assert sync.round == 1 and sync.pending == (0,)
    assert all(torch.equal(w, before[n]) for n, w in sync.weights().items())
    wire.flips = False
    sync.sync(sync.pending)
    assert sync.round == 2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("schedule", [EveryH(), Streaming(fragments=2, delay=1), OneStepDelay()])
def test_nan_loss_of_one_island_in_any_step(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, schedule: Schedule, batched: bool
) -> None:
    """It rests up to the sync, is named and left out, and trains on from the global weights."""
    backward, together = PlainIsland.backward, BatchedIslands.backward
    calls = {1: 0, 2: 0}
    first: list[PlainIsland] = []
    assemble = trainer.assemble

    def assembled(*arguments: Any) -> Any:
        made = assemble(*arguments)
        first.append(made.islands[0])
        return made

    def poisoned(self: PlainIsland, batches: Any) -> float:
        loss = backward(self, batches)
        if self is first[0]:
            return loss
        calls[1] += 1
        return math.nan if calls[1] == 6 else loss

    def poisoned_together(self: BatchedIslands, batches: Any) -> dict[int, float]:
        losses = together(self, batches)
        calls[2] += 1
        return {i: math.nan if i == 1 and calls[2] == 6 else loss for i, loss in losses.items()}

    monkeypatch.setattr(trainer, "assemble", assembled)
    monkeypatch.setattr(PlainIsland, "backward", poisoned)
    monkeypatch.setattr(BatchedIslands, "backward", poisoned_together)
    config = runs.small(corpus, tmp_path / "run", batched=batched, sync=SyncConfig(every=4, schedule=schedule))
    assert train(config) == 0
    notes = [m["note"] for m in runs.metrics(tmp_path / "run") if m.get("note")]
    assert any("the loss of island 1 is nan at inner step 6: it rests until the next sync" in n for n in notes)
    wanted = "island 1 was left out of round"
    assert any(wanted in n and "its loss or gradients were not finite at inner step 6" in n for n in notes)
    trained = {EveryH: 10, Streaming: 9, OneStepDelay: 6}  # it rests until what departs after step 6 is committed
    assert batched or calls[1] == trained[type(schedule)]
    assert runs.summary(tmp_path / "run")["status"] == "done"
    assert math.isfinite(runs.summary(tmp_path / "run")["val_bpb"])


def test_an_island_that_is_set_aside_stays_so_over_a_resume(tmp_path: Path) -> None:
    sync, again = build(), build()
    run(sync, EVERY + 1)
    sync.set_aside(1)
    sync.save(tmp_path)
    again.load(tmp_path)
    assert again.rests(1) and not again.rests(0)
    reports: list[SyncReport] = []
    again.listeners.append(reports.append)
    for step in range(EVERY + 1, 2 * EVERY):
        for i in (0, 2):
            x, y = toy.batch(i, step)
            (again.replicas[i].model(x) - y).square().mean().backward()
            again.count_tokens(len(x), i)
            again.replicas[i].inner.step()
            again.replicas[i].inner.zero_grad()
        again.rest(1)
    assert reports[0].dropped == {1: f"its loss or gradients were not finite at inner step {EVERY + 2}"}
    assert not again.rests(1) and not again.replicas[1].inner.state
    assert all(torch.equal(p, again.weights()[n]) for n, p in again.replicas[1].params.items())
