"""What a sync guarantees (DESIGN: nine lines), and the defects of other systems that each line answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import lowcomm as lc
from lowcomm.codec import ErrorFeedback, Int4, PowerSGD
from lowcomm.outer import SGD, FedAdam, Nesterov
from lowcomm.schedule import OneStepDelay, Streaming
from lowcomm.state.consistency import Consistency
from lowcomm.state.coverage import check_partition, prove
from lowcomm.sync import LocalSGD, SyncReport
from lowcomm.transport import Simulated
from lowcomm.transport.base import Altered, ordered_sum
from lowcomm.types import CoverageError, DivergenceError, SyncError
from tests.support import toy


class Flaky(Simulated):
    """Fails the n-th weighted sum (from 1), after tearing the output as gloo does."""

    def __init__(self, islands: int, fail_at: Sequence[int]) -> None:
        super().__init__(islands)
        self.fail_at, self.calls = set(fail_at), 0

    def weighted_sum(self, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Altered:
        self.calls += 1
        if self.calls in self.fail_at:
            out[: len(out) // 2] = 123.0
            raise SyncError("the link was cut")
        return super().weighted_sum(vectors, weights, out)


def snapshot(sync: LocalSGD) -> list[Tensor]:
    """Everything that a failed exchange must leave alone."""
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


# 1. coverage proof


def test_bucket_that_does_not_fit_is_synced_too() -> None:
    """Three tensors of 600: a bucketing all-reduce with a cap of 1000 forgot the third."""
    models = [nn.ParameterList([nn.Parameter(torch.full((600,), float(i + k))) for i in range(3)]) for k in range(2)]
    inners = [torch.optim.SGD(m.parameters(), lr=1.0) for m in models]
    for p in models[1].parameters():
        p.data -= 1.0  # equal start
    LocalSGD(models, inners, every=1, outer=SGD(lr=1.0))
    for k, (model, inner) in enumerate(zip(models, inners, strict=True)):
        for i, p in enumerate(model.parameters()):
            p.grad = torch.full((600,), -(10.0 * k + i + 1))
        inner.step()
    for i in range(3):
        expected = torch.full((600,), i + (i + 1) + 5.0)
        assert torch.equal(models[0][i], expected)
        assert torch.equal(models[1][i], expected)


def test_tied_weights_are_counted_once() -> None:
    coverage = prove(toy.Net(), {})
    assert coverage.trainable.count("middle.weight") == 1
    assert "again.weight" not in coverage.trainable
    sync = toy.build(2)
    assert sync.state.fragments[0].numel == sum(p.numel() for p in sync.replicas[0].model.parameters())


def test_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(CoverageError, match="inner optimizer updates"):
        LocalSGD(toy.Net(), toy.sgd(toy.Net()), every=2)


def test_frozen_parameters_may_be_in_the_inner_optimizer() -> None:
    """torch allows it, and skips what has no gradient; one that kept a gradient would be moved unseen."""
    model = toy.Net()
    model.last.bias.requires_grad_(False)
    before = model.last.bias.detach().clone()
    sync = LocalSGD(model, toy.adamw(model), every=2)
    for step in range(4):
        toy.train_step(sync, step)
    assert sync.round == 2 and torch.equal(model.last.bias, before)
    model.first.bias.grad = torch.ones(5)
    model.first.bias.requires_grad_(False)
    with pytest.raises(CoverageError, match=r"still have a gradient, the first of shape \(5,\)"):
        LocalSGD(model, toy.adamw(model), every=2)


def _shared(kind: str) -> nn.Module:
    model = nn.ModuleDict({"a": nn.Linear(4, 6, bias=False), "b": nn.Linear(4, 6, bias=False)})
    a, b = model["a"].weight, model["b"].weight
    whole = torch.randn(6, 8)
    if kind == "whole":
        b.data = a.data
    elif kind == "transposed":
        model["b"] = nn.Linear(6, 4, bias=False)
        model["b"].weight.data = a.data.T
    elif kind == "rows":
        model["b"].weight.data = a.data[2:]
    elif kind == "frozen":
        b.data = a.data
        b.requires_grad_(False)
    elif kind == "buffer":
        model["b"] = nn.Module()
        model["b"].register_buffer("kept", a.data, persistent=False)
    elif kind == "halves":
        a.data, b.data = whole[:3].view(6, 4), whole[3:].view(6, 4)
    elif kind == "columns":
        a.data, b.data = whole[:, :4], whole[:, 4:]
    elif kind == "both frozen":
        b.data = a.data
        model["c"] = nn.Linear(2, 2)
        for p in (a, b):
            p.requires_grad_(False)
    return model


@pytest.mark.parametrize("kind", ["whole", "transposed", "rows", "frozen", "buffer"])
def test_two_tensors_in_one_memory_are_refused_by_name(kind: str) -> None:
    model = _shared(kind)
    with pytest.raises(CoverageError, match=r"a\.weight and .* b\.(weight|kept) lie in the same memory"):
        LocalSGD(model, toy.sgd(model), every=1)


@pytest.mark.parametrize("kind", ["halves", "columns", "both frozen"])
def test_pieces_of_one_memory_that_do_not_meet_are_fine(kind: str) -> None:
    model = _shared(kind)
    LocalSGD(model, toy.sgd(model), every=1)


def test_islands_of_one_process_may_share_frozen_weights_only() -> None:
    model = toy.Net()
    with pytest.raises(CoverageError, match="each island needs a model of its own"):
        LocalSGD([model, model], [toy.sgd(model), toy.sgd(model)], every=1)
    models = [toy.Net(), toy.Net()]
    models[1].last.weight = models[0].last.weight
    with pytest.raises(CoverageError, match=r"last\.weight of island 1 is also another island's"):
        LocalSGD(models, [toy.sgd(m) for m in models], every=1)
    models[0].last.weight.requires_grad_(False)
    LocalSGD(models, [toy.sgd(m) for m in models], every=1)


def test_parameter_unfrozen_later_is_seen() -> None:
    model = toy.Net()
    model.last.bias.requires_grad_(False)
    sync = LocalSGD(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), every=2)
    model.last.bias.requires_grad_(True)
    with pytest.raises(CoverageError, match=r"last\.bias"):
        sync.sync((0,))


def test_integer_and_missing_parameters_are_refused() -> None:
    model = nn.Linear(2, 2)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(CoverageError, match="no trainable parameter"):
        prove(model, {})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([["a"]], "in no fragment, the first is b"),
        ([["a", "b"], ["b"]], "b is in fragments 0 and 1"),
        ([["a", "b", "c"]], "which is no trainable parameter"),
        ([["a", "b"], []], "fragment 1 is empty"),
    ],
)
def test_partitions_that_do_not_cover_are_refused(parts: list[list[str]], message: str) -> None:
    with pytest.raises(CoverageError, match=message):
        check_partition(["a", "b"], parts)


def test_buffers_must_be_named_and_are_averaged() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    with pytest.raises(CoverageError, match=r"1\.running_mean .* is named nowhere"):
        one = model()
        LocalSGD(one, toy.sgd(one), every=1)
    with pytest.raises(CoverageError, match="matches no buffer"):
        one = model()
        LocalSGD(one, toy.sgd(one), every=1, buffers={"*running*": "average", "*tracked": "local", "typo": "local"})
    models = [model() for _ in range(2)]
    inners = [toy.sgd(m) for m in models]
    sync = LocalSGD(models, inners, every=1, buffers={"*running*": "average", "*tracked": "local"})
    for k, m in enumerate(models):
        m(torch.randn(8, 3) + 5 * k).square().mean().backward()
    means = [dict(m.named_buffers())["1.running_mean"].clone() for m in models]
    for inner in inners:
        inner.step()
    assert sync.round == 1
    for m in models:
        torch.testing.assert_close(dict(m.named_buffers())["1.running_mean"], (means[0] + means[1]) / 2)


def test_islands_that_start_apart_take_island_0_s_weights() -> None:
    models = [toy.Net(seed) for seed in (3, 4)]
    LocalSGD(models, [toy.sgd(m) for m in models], every=2)
    assert torch.equal(toy.flat(list(models[0].parameters())), toy.flat(list(toy.Net(3).parameters())))
    assert torch.equal(toy.flat(list(models[1].parameters())), toy.flat(list(toy.Net(3).parameters())))


def test_other_shapes_and_settings_are_refused_with_both_sides() -> None:
    models: list[nn.Module] = [nn.Linear(3, 2), nn.Linear(3, 4)]
    with pytest.raises(DivergenceError, match=r"islands 0 and 1 .*tensors\[bias\]: '\(2,\) .* against '\(4,\)"):
        LocalSGD(models, [toy.sgd(m) for m in models], every=2)


# 2. fp32 pseudo-gradient and outer state


@pytest.mark.parametrize("outer", [Nesterov(), FedAdam()])
def test_bf16_models_have_fp32_global_weights_and_outer_state(outer: lc.outer.Outer) -> None:
    models = [toy.Net().bfloat16() for _ in range(2)]
    sync = LocalSGD(models, [toy.sgd(m) for m in models], every=1, outer=outer)
    with torch.no_grad():
        for p in models[0].parameters():
            p.add_(0.25)
    sync.count_tokens(1, 0)
    for r in sync.replicas:
        r.take_step()
    sync.sync((0,))
    assert all(w.dtype == torch.float32 for w in sync.weights().values())
    state = [t for s in sync.state.anchors[0][0].optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    assert state
    assert all(t.dtype == torch.float32 for t in state)
    for r in sync.replicas:
        for n, p in r.params.items():
            assert torch.equal(p, sync.weights()[n].bfloat16())


# 3. never commit un-reduced


def test_failed_exchange_changes_nothing_and_stays_pending() -> None:
    sync = toy.build(3, transport=Flaky(3, fail_at=[2]))
    for step in range(toy.EVERY * 2 - 1):
        toy.train_step(sync, step)

    def last_inner_step() -> None:
        for i, (replica, island) in enumerate(zip(sync.replicas, sync.transport.local, strict=True)):
            x, y = toy.batch(island, 99)
            (replica.model(x) - y).square().mean().backward()
            sync.count_tokens(len(x), i)
            replica.inner.step()

    with pytest.raises(SyncError, match="cut"):
        last_inner_step()
    assert sync.pending == (0,)
    assert sync.round == 1
    before = snapshot(sync)
    with pytest.raises(SyncError):
        sync.transport.fail_at.add(sync.transport.calls + 1)  # type: ignore[attr-defined]
        sync.sync(sync.pending)
    after = snapshot(sync)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    locals_ = [toy.flat(r.tensors(sync.state.fragments[0])) for r in sync.replicas]
    assert not torch.equal(locals_[0], locals_[1])  # each keeps its own weights: nobody applied its Delta as the mean


def test_pending_work_is_in_the_next_sync() -> None:
    """A round whose exchange failed ends as a run whose rounds were simply longer."""
    failed = toy.build(3, transport=Flaky(3, fail_at=[1]))
    for step in range(toy.EVERY):
        try:
            toy.train_step(failed, step)
        except SyncError:
            for replica in failed.replicas:
                replica.inner.zero_grad()
    assert failed.round == 0
    failed.sync(failed.pending)
    plain = toy.build(3)
    for step in range(toy.EVERY):
        toy.train_step(plain, step)
    assert torch.equal(toy.flat(list(failed.weights().values())), toy.flat(list(plain.weights().values())))


# 4. same bits everywhere


def test_one_flipped_bit_stops_the_run_naming_the_tensor() -> None:
    sync = toy.build(2)
    fragment, (anchor,) = sync.state.fragments[0], sync.state.anchors[0]
    good = anchor.read(sync.replicas[0].tensors(fragment))

    class Disagreeing(Simulated):
        def gather(self, rows: Sequence[Tensor]) -> Tensor:
            table = super().gather(rows).clone()
            if table.shape[1] > 16:  # the digests tensor by tensor: island 1 differs in the third
                table[1, 2 * 16] ^= 1
            return table

    round_ = lc.types.Round(index=7, step=28, fragments=(0,), seed=0)
    sync.state.consistency.compare_each(anchor, [good, good], round_)
    with pytest.raises(DivergenceError, match=rf"round 7 .* {fragment.names[2]} on islands \[1\]"):
        Consistency(Disagreeing(2)).compare_each(anchor, [good, bytes([good[0] ^ 1]) + good[1:]], round_)


def test_sum_does_not_depend_on_how_the_vector_is_cut() -> None:
    vectors = [torch.randn(1000) * 10**k for k in range(5)]
    for weights in ([0.1, 0.3, 0.2, 0.15, 0.25], [0.2] * 5, [0.5, 0.0, 0.0, 0.0, 0.5]):
        whole, scratch = torch.empty(1000), torch.empty(1 << 17)
        ordered_sum(vectors, weights, whole, scratch)
        for cut in (1, 3, 64, 333):
            parts = torch.empty(1000)
            for start in range(0, 1000, cut):
                stop = min(start + cut, 1000)
                ordered_sum([v[start:stop] for v in vectors], weights, parts[start:stop], scratch)
            assert torch.equal(whole, parts)
        exact = sum(v.double() * w for v, w in zip(vectors, weights, strict=True))
        assert isinstance(exact, Tensor)
        torch.testing.assert_close(whole.double(), exact, rtol=1e-5, atol=1e-3)


# 5. to 9.


def dropped_reports(sync: LocalSGD) -> list[SyncReport]:
    reports: list[SyncReport] = []
    sync.listeners.append(reports.append)
    return reports


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_bad_island_is_left_out_reported_and_healed(poison: float) -> None:
    sync = toy.build(3, outer=SGD(lr=1.0))
    reports = dropped_reports(sync)
    for step in range(toy.EVERY - 1):
        toy.train_step(sync, step)
    with torch.no_grad():
        sync.replicas[1].params["last.bias"][0] = poison
    good = [toy.flat(sync.replicas[k].tensors(sync.state.fragments[0])) for k in (0, 2)]
    for replica in sync.replicas:
        for p in replica.params.values():
            p.grad = torch.zeros_like(p)
        for group in replica.inner.param_groups:
            group["lr"] = 0.0
        replica.next_tokens = 1
        replica.inner.step()
    assert list(reports[0].dropped) == [1]
    assert "not finite" in reports[0].dropped[1]
    assert reports[0].weights[1] == 0
    weights = toy.flat(list(sync.weights().values()))
    assert torch.isfinite(weights).all()
    # examples of islands 0 and 2: three batches of 4 and of 6, and one unit each
    torch.testing.assert_close(weights, (good[0] * 13 + good[1] * 19) / 32, rtol=1e-5, atol=1e-6)
    assert torch.equal(toy.flat(sync.replicas[1].tensors(sync.state.fragments[0])), weights)
    assert not sync.replicas[1].inner.state  # its moments may be NaN as well


def test_no_quorum_commits_nothing() -> None:
    sync = toy.build(3)
    toy.train_step(sync, 0)
    with torch.no_grad():
        for k in (0, 1):
            sync.replicas[k].params["last.bias"].fill_(math.nan)
    weights = toy.flat(list(sync.weights().values()))
    with pytest.raises(SyncError, match=r"no quorum: 1 of 3 .*island 0: .*island 1: "):
        sync.sync((0,))
    assert torch.equal(toy.flat(list(sync.weights().values())), weights)
    assert sync.pending == (0,)


def test_bytes_are_counted_for_the_exact_buffers() -> None:
    n, islands = toy.build(4), 4
    before = n.transport.sent_bytes[0]
    for step in range(toy.EVERY):
        toy.train_step(n, step)
    size = n.state.fragments[0].size
    roll_call, digests, checksum, agreement = 4 * 8, 16, 8, islands
    small = roll_call + digests + checksum + agreement
    expected = 2 * (islands - 1) * size // islands * 4 + (islands - 1) * small
    assert n.transport.sent_bytes[0] - before == expected
    assert n.transport.received_bytes == n.transport.sent_bytes


def test_unequal_tokens_weigh_the_mean() -> None:
    sync = toy.build(2, outer=SGD(lr=1.0), every=100)
    with torch.no_grad():
        for p in sync.replicas[1].params.values():
            p.add_(1.0)
    start = toy.flat(sync.replicas[0].tensors(sync.state.fragments[0]))
    sync.replicas[0].tokens, sync.replicas[1].tokens = 300.0, 100.0
    sync.sync((0,))
    torch.testing.assert_close(toy.flat(list(sync.weights().values())), start + 0.25)


def test_island_without_work_gets_the_mean_of_the_others() -> None:
    sync = toy.build(2, outer=SGD(lr=1.0), every=100)
    with torch.no_grad():
        for p in sync.replicas[1].params.values():
            p.add_(1.0)
    target = toy.flat(sync.replicas[1].tensors(sync.state.fragments[0]))
    sync.replicas[1].tokens = 5.0
    sync.finish()
    torch.testing.assert_close(toy.flat(sync.replicas[0].tensors(sync.state.fragments[0])), target)


def test_presets_say_what_the_papers_say() -> None:
    model = toy.Net()
    diloco = lc.DiLoCo(model, toy.adamw(model))
    assert (diloco.spec.every, diloco.spec.outer) == (500, Nesterov(lr=0.7, momentum=0.9))
    other = toy.Net()
    assert lc.FedAvg(other, toy.adamw(other), every=5).spec.outer == SGD(lr=1.0)
    layers = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
    named = nn.ModuleDict({"layers": layers})
    streaming = lc.StreamingDiLoCo(named, toy.sgd(named), every=24)
    spec = streaming.spec
    assert spec.schedule == Streaming(fragments=4, delay=5, alpha=0.5) and len(streaming.state.fragments) == 4
    assert spec.codec == ErrorFeedback(codec=Int4()) and spec.outer == Nesterov(lr=0.4, momentum=0.9)
    last = toy.Net()
    delayed = lc.DiLoCoX(last, toy.adamw(last))
    assert delayed.spec.schedule == OneStepDelay() and delayed.spec.every == 125
    assert delayed.spec.codec == ErrorFeedback(codec=PowerSGD(rank=64, bits=4, energy=0.95))
    with pytest.raises(TypeError):
        lc.DiLoCo(other, toy.adamw(other), evry=3)  # type: ignore[call-arg]
