"""Failures at every exchange of a sync, retries, and what a loop that was built or changed wrongly hears."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from lowcomm.outer import SGD, Nesterov
from lowcomm.schedule import Action, EveryH, EveryStep, PostLocal, Schedule
from lowcomm.state.checkpoint import global_part, load_global
from lowcomm.sync import LocalSGD, SyncReport
from lowcomm.transport import Simulated
from lowcomm.transport.base import Altered
from lowcomm.types import ConfigError, CoverageError, SyncError
from tests.methods import SCHEDULES, name
from tests.support import toy

ISLANDS = 3


class Cut(Simulated):
    """Fails the exchanges that have been announced: `cut["gather"] = 2` fails the second gather from now."""

    def __init__(self, islands: int) -> None:
        super().__init__(islands)
        self.cut: dict[str, int] = {}

    def _count_down(self, what: str) -> None:
        if what in self.cut:
            self.cut[what] -= 1
            if self.cut[what] == 0:
                del self.cut[what]
                raise SyncError(f"the {what} was cut")

    def weighted_sum(self, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Altered:
        if self.cut.get("weighted_sum") == 1:
            out.fill_(123.0)  # what gloo leaves behind is torn
        self._count_down("weighted_sum")
        return super().weighted_sum(vectors, weights, out)

    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        self._count_down("gather")
        return super().gather(rows)


@dataclass(frozen=True, kw_only=True)
class AtSteps(Schedule):
    """Two fragments, exchanged at the given steps in the given order."""

    steps: tuple[int, ...]
    order: tuple[int, ...] = (0, 1)
    fragments: int = field(default=2, init=False)

    def __call__(self, step: int, every: int) -> Action:
        return Action(sync=self.order if step in self.steps else ())

    def partition(self, sizes: Mapping[str, int]) -> list[list[str]]:
        names = list(sizes)
        return [names[::2], names[1::2]]

    def check(self, every: int, steps: int | None) -> None:
        return None


def snapshot(sync: LocalSGD) -> list[Tensor]:
    """Global weights, local weights, outer state."""
    tensors = [a.weights for (a,) in sync.state.anchors]
    tensors += [p for r in sync.replicas for p in r.params.values()]
    tensors += [
        t
        for (a,) in sync.state.anchors
        for s in a.optimizer.state.values()
        for t in s.values()
        if isinstance(t, Tensor)
    ]
    return [t.detach().clone() for t in tensors]


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def global_weights(sync: LocalSGD) -> Tensor:
    return toy.flat(list(sync.weights().values()))


def try_step(sync: LocalSGD, step: int) -> bool:
    """One inner step of every island, like a loop that goes on after a failed sync; False if it failed."""
    try:
        toy.train_step(sync, step)
    except SyncError:
        for replica in sync.replicas:
            replica.inner.zero_grad()
        return False
    return True


# an exchange that fails


@pytest.mark.parametrize("exchange", ["gather", "weighted_sum"])
def test_a_cut_before_the_commit_changes_nothing(exchange: str) -> None:
    transport = Cut(ISLANDS)
    sync = toy.build(ISLANDS, transport=transport, every=100)
    for step in range(toy.EVERY):
        toy.train_step(sync, step)
        sync.sync((0,)) if step == 0 else None  # there is outer state to be left alone
    before, states = snapshot(sync), sync.state.codec_states
    transport.cut = {exchange: 1}
    with pytest.raises(SyncError, match=f"the {exchange} was cut"):
        sync.sync((0,))
    assert same(before, snapshot(sync))
    assert (sync.round, sync.pending, sync.state.codec_states) == (1, (0,), states)
    sync.finish()
    assert sync.round == 2
    assert not same(before[:1], snapshot(sync)[:1])


def test_a_cut_after_the_commit_says_so_and_the_next_sync_compares() -> None:
    transport = Cut(ISLANDS)
    sync = toy.build(ISLANDS, transport=transport, every=100)
    toy.train_step(sync, 0)
    transport.cut = {"gather": 3}  # the roll call and the agreement pass, the comparison of the new weights does not
    with pytest.raises(SyncError, match=r"round 0 was committed here, .* not be compared .*was cut"):
        sync.sync((0,))
    assert (sync.round, sync.pending) == (1, (0,))
    after = global_weights(sync)
    plain = toy.build(ISLANDS, every=100)
    toy.train_step(plain, 0)
    plain.sync((0,))
    assert torch.equal(after, global_weights(plain))
    for replica in sync.replicas:
        assert torch.equal(toy.flat(replica.tensors(sync.state.fragments[0])), after)
    toy.train_step(sync, 1)
    assert (sync.round, sync.pending) == (2, ())


@pytest.mark.parametrize("exchange", ["gather", "weighted_sum"])
def test_failed_round_equals_a_run_in_which_it_came_later(exchange: str) -> None:
    """The sync due after step 4 fails and is made up after step 5; the one after step 9 follows as usual."""
    transport = Cut(ISLANDS)
    failed = toy.build(ISLANDS, transport=transport, schedule=AtSteps(steps=(4, 9)))
    outcome = []
    for step in range(9):
        if step == 3:
            transport.cut = {exchange: 1}
        outcome.append(try_step(failed, step))
    assert [i for i, ok in enumerate(outcome) if not ok] == [3]
    later = toy.build(ISLANDS, schedule=AtSteps(steps=(5, 9)))
    for step in range(9):
        toy.train_step(later, step)
    assert failed.round == later.round == 4
    assert torch.equal(global_weights(failed), global_weights(later))


def test_only_the_fragment_that_failed_stays_pending() -> None:
    transport = Cut(ISLANDS)
    sync = toy.build(ISLANDS, transport=transport, schedule=AtSteps(steps=(2,), order=(1, 0)))
    toy.train_step(sync, 0)
    transport.cut = {"weighted_sum": 2}
    first = [a.weights.clone() for (a,) in sync.state.anchors]
    assert not try_step(sync, 1)
    assert sync.pending == (0,)
    assert torch.equal(sync.state.anchors[0][0].weights, first[0])
    assert not torch.equal(sync.state.anchors[1][0].weights, first[1])
    assert try_step(sync, 2)
    assert (sync.pending, sync.round) == ((), 2)
    assert not torch.equal(sync.state.anchors[0][0].weights, first[0])


class WithStatistics(nn.Module):
    """A buffer that follows the inputs, so that averaging it is one more exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.net = toy.Net()
        self.register_buffer("seen", torch.zeros(7))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.mean(dim=0)
        return self.net(x)


@pytest.mark.parametrize("exchange", ["gather", "weighted_sum"])
def test_a_cut_at_the_end_of_a_warmup_is_made_up(exchange: str) -> None:
    """A failed take-over of the warm-up's weights must not leave the weights from before it as the global ones."""

    def run(fail: bool) -> Tensor:
        transport = Cut(ISLANDS)
        models = [WithStatistics() for _ in range(ISLANDS)]
        inners, schedule = [toy.sgd(m) for m in models], PostLocal(warmup_steps=4)
        sync = LocalSGD(
            models,
            inners,
            every=3,
            outer=Nesterov(),
            schedule=schedule,
            transport=transport,
            buffers={"seen": "average"},
        )
        for step in range(7):
            if fail and step == 4:
                transport.cut = {exchange: 1}
                assert not try_step(sync, step)
                for replica in sync.replicas:
                    replica.next_tokens = 0
            toy.train_step(sync, step)
        assert sync.round == 1
        return global_weights(sync)

    assert torch.equal(run(fail=True), run(fail=False))


# islands that are left out


class OtherRound(Simulated):
    """Island 1 reports a round that is two behind."""

    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        table = super().gather(rows).clone()
        if table.dtype == torch.float64:
            table[1, 0] -= 2
        return table


def test_a_stale_round_is_left_out_and_reported() -> None:
    reports: list[SyncReport] = []
    sync = toy.build(ISLANDS, outer=SGD(lr=1.0), transport=OtherRound(ISLANDS), every=100)
    sync.listeners.append(reports.append)
    sync.state.round = 5
    for step in range(toy.EVERY):
        toy.train_step(sync, step)
    local = [toy.flat(r.tensors(sync.state.fragments[0])) for r in sync.replicas]
    sync.sync((0,))
    assert reports[0].dropped == {1: "it is in round 3, the others in 5"}
    torch.testing.assert_close(global_weights(sync), (local[0] * 4 + local[2] * 6) / 10, rtol=1e-5, atol=1e-6)


def test_all_islands_not_finite_is_an_error() -> None:
    sync = toy.build(ISLANDS, every=100)
    toy.train_step(sync, 0)
    with torch.no_grad():
        for replica in sync.replicas:
            replica.params["scale"].fill_(math.nan)
    before = global_weights(sync)
    with pytest.raises(SyncError, match="0 of 3 islands are usable"):
        sync.sync((0,))
    assert torch.equal(global_weights(sync), before)


@pytest.mark.parametrize(("quorum", "passes"), [(0.5, True), (2 / 3, True), (0.67, False), (1.0, False)])
def test_quorum_is_a_fraction_of_all_islands(quorum: float, passes: bool) -> None:
    models = [toy.Net() for _ in range(ISLANDS)]
    sync = LocalSGD(models, [toy.adamw(m) for m in models], every=100, quorum=quorum)
    toy.train_step(sync, 0)
    with torch.no_grad():
        sync.replicas[2].params["scale"].fill_(math.inf)
    if passes:
        sync.sync((0,))
        assert torch.isfinite(global_weights(sync)).all()
    else:
        with pytest.raises(SyncError, match="2 of 3 islands are usable"):
            sync.sync((0,))


@pytest.mark.parametrize("quorum", [0.0, -1.0, 1.5, math.nan])
def test_quorum_out_of_range_is_refused(quorum: float) -> None:
    model = toy.Net()
    with pytest.raises(ConfigError, match=r"quorum = .* Fix: "):
        LocalSGD(model, toy.sgd(model), every=1, quorum=quorum)


# coverage that is lost later


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_parameter_unfrozen_later_is_seen_under_every_schedule(schedule: Schedule) -> None:
    models = [toy.Net() for _ in range(2)]
    for m in models:
        m.last.bias.requires_grad_(False)
    inners = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1) for m in models]
    sync = LocalSGD(models, inners, every=4, schedule=schedule)
    toy.train_step(sync, 0)
    for m, inner in zip(models, inners, strict=True):
        m.last.bias.requires_grad_(True)
        inner.add_param_group({"params": [m.last.bias]})
    with pytest.raises(CoverageError, match=r"parameter last\.bias was frozen, unfrozen or replaced"):
        for step in range(1, 15):
            toy.train_step(sync, step)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_tensor_given_to_the_optimizer_later_is_seen(schedule: Schedule) -> None:
    sync = toy.build(2, schedule=schedule, every=4)
    toy.train_step(sync, 0)
    sync.replicas[1].inner.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    with pytest.raises(CoverageError, match="the inner optimizer updates 1 tensors"):
        for step in range(1, 15):
            toy.train_step(sync, step)


# a loop that was built wrongly


def test_models_and_islands_of_the_transport_must_match() -> None:
    models = [toy.Net() for _ in range(2)]
    with pytest.raises(ConfigError, match=r"model = 2 is not allowed: .*3"):
        LocalSGD(models, [toy.sgd(m) for m in models], every=2, transport=Simulated(3))


def test_models_and_inner_optimizers_must_match() -> None:
    models = [toy.Net() for _ in range(2)]
    with pytest.raises(ConfigError, match=r"inner = 1 is not allowed: .*2"):
        LocalSGD(models, [toy.sgd(models[0])], every=2)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("every", [0, -1])
def test_a_period_below_one_is_refused(schedule: Schedule, every: int) -> None:
    with pytest.raises(ConfigError, match=rf"every = {every} .* Fix: "):
        toy.build(2, schedule=schedule, every=every)


def test_negative_tokens_are_refused() -> None:
    sync = toy.build(2)
    with pytest.raises(ConfigError, match="tokens = -5"):
        sync.count_tokens(-5)


def test_several_local_islands_need_their_gradients_averaged_before_the_first_step() -> None:
    sync = toy.build(2, schedule=EveryStep())
    for replica in sync.replicas:
        x, y = toy.batch(0, 0)
        (replica.model(x) - y).square().mean().backward()
    with pytest.raises(SyncError, match="call average_gradients"):
        sync.replicas[0].inner.step()


def test_one_model_alone_is_one_island() -> None:
    model = toy.Net()
    sync = LocalSGD(model, toy.sgd(model), every=2, outer=SGD(lr=1.0), schedule=EveryH())
    for step in range(4):
        toy.train_step(sync, step)
    assert (sync.round, sync.transport.islands, sync.transport.sent_bytes) == (2, 1, [0])
    assert torch.equal(toy.flat(sync.replicas[0].tensors(sync.state.fragments[0])), global_weights(sync))


def test_a_run_has_a_number_of_its_own_that_a_checkpoint_keeps() -> None:
    first, second = toy.build(2), toy.build(2)
    assert first.state.run_id != second.state.run_id  # of the same seed and recipe
    assert first.state.round_of(0).run == first.state.run_id
    load_global(second.state, global_part(first.state))
    assert second.state.run_id == first.state.run_id
    tensors, values = global_part(first.state)
    fresh = toy.build(2)
    kept = fresh.state.run_id
    load_global(fresh.state, (tensors, {key: v for key, v in values.items() if key != "run"}))  # of an older version
    assert fresh.state.run_id == kept
