"""Inner optimizers: against their library or their equation, refused settings, and exact resume."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from lowcomm.island import LR_SCHEDULES, AdamW, Gpa, Inner, InnerConfig, Lion, LrSchedule, Muon, Savic, Soap, lr_factor
from lowcomm.island.combined import Combined
from lowcomm.island.muon import hidden_matrices
from lowcomm.island.stage_module import StageModule
from lowcomm.model import ModelConfig, build_model
from lowcomm.trainer import train
from lowcomm.types import ConfigError
from tests.methods import INNERS, name
from tests.support import runs, toy


def with_gradients(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    return model


def copies(count: int) -> list[toy.Net]:
    first = toy.Net()
    return [first, *(copy.deepcopy(first) for _ in range(count - 1))]


def test_muon_is_the_librarys_on_matrices_and_adamw_elsewhere() -> None:
    ours, theirs = copies(2)
    built = Muon(lr=0.01).build(ours)
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    vectors = [p for p in theirs.parameters() if p.ndim < 2]
    muon = torch.optim.Muon(matrices, lr=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(vectors, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for step in range(3):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        for optimizer in (built, muon, adamw):
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_embeddings_and_head_are_no_hidden_matrices() -> None:
    model = build_model(ModelConfig(preset="nano"), vocab_size=260, max_tokens=32, seed=0, eos_id=0)
    assert isinstance(model, nn.Module)
    hidden, others = hidden_matrices(model)
    known = {id(p): n for n, p in model.named_parameters()}
    assert {known[id(p)].split(".")[-2] for p in hidden} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    }
    outside = {known[id(p)] for p in others if p.ndim == 2}
    assert "model.embed_tokens.weight" in outside and not outside - {"model.embed_tokens.weight", "lm_head.weight"}
    assert len(hidden) + len(others) == len(known)


def test_lion_is_its_equation() -> None:
    model = copies(1)[0]
    before = [p.detach().clone() for p in model.parameters()]
    moments = [torch.zeros_like(p) for p in before]
    inner = Lion(lr=0.01, beta1=0.9, beta2=0.99, weight_decay=0.5).build(model)
    for step in range(3):
        with_gradients(model, step)
        inner.step()
        for p, m, now in zip(before, moments, model.parameters(), strict=True):
            assert now.grad is not None
            decay = 0.5 if p.ndim >= 2 else 0.0
            p.copy_(p * (1 - 0.01 * decay) - 0.01 * torch.sign(0.9 * m + 0.1 * now.grad))
            m.copy_(0.99 * m + 0.01 * now.grad)
    for p, now in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(now.detach(), p)


def test_gpa_is_its_three_iterates() -> None:
    """x, y and z by the paper's lines; the optimizer keeps y and z - y."""
    ours, theirs = copies(2)
    inner = Gpa(lr=0.01, average=0.8, at=0.7).build(ours)
    adamw = AdamW(lr=0.01).build(theirs)  # its weights stand for z while it steps from y
    params = list(theirs.parameters())
    x, y, z = ([p.detach().clone() for p in params] for _ in range(3))
    for step in range(4):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        inner.step()
        adamw.step()
        for i, p in enumerate(params):
            z[i] += p.detach() - y[i]
            x[i] = 0.8 * x[i] + 0.2 * z[i]
            y[i] = 0.7 * x[i] + 0.3 * z[i]
            with torch.no_grad():
                p.copy_(y[i])
    for p, wanted in zip(ours.parameters(), y, strict=True):
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-5, atol=1e-6)


def test_gpa_without_averaging_is_adamw_bit_for_bit() -> None:
    ours, theirs = copies(2)
    gpa, adamw = Gpa(lr=0.01, average=0.0).build(ours), AdamW(lr=0.01).build(theirs)
    for step in range(3):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        gpa.step()
        adamw.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_savics_scaling_is_renewed_once_in_a_round() -> None:
    model = copies(1)[0]
    inner = Savic(lr=0.01, scale_every=3, beta2=0.5).build(model)
    p, grads, squares = model.first.weight, list[torch.Tensor](), list[torch.Tensor]()
    for step in range(6):
        with_gradients(model, step)
        assert p.grad is not None
        grads.append(p.grad.clone())
        inner.step()
        squares.append(inner.state[p]["exp_avg_sq"].clone())
    torch.testing.assert_close(squares[0], grads[0] ** 2)  # Adam's first renewal takes all of it
    assert all(torch.equal(squares[i], squares[i - 1]) for i in (1, 2, 4, 5))
    share = (0.5 - 0.5**2) / (1 - 0.5**2)
    torch.testing.assert_close(squares[3], share * grads[0] ** 2 + (1 - share) * grads[3] ** 2)


def test_savic_with_a_high_floor_is_sgd_with_momentum() -> None:
    ours, theirs = copies(2)
    savic = Savic(lr=0.5, floor=100.0, weight_decay=0.0).build(ours)
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.005, momentum=0.9)
    for step in range(3):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        savic.step()
        sgd.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_soap_is_adam_in_shampoos_eigenbasis() -> None:
    """The second step of a matrix, by hand: the first only fills the preconditioner."""
    layer = nn.Linear(4, 3, bias=False)
    inner = Soap(lr=0.1, beta1=0.9, beta2=0.8, weight_decay=0.0).build(layer)
    start = layer.weight.detach().clone()
    first, second = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), torch.eye(3, 4)
    for gradient in (first, second):
        layer.weight.grad = gradient.clone()
        inner.step()
    left = torch.linalg.eigh(0.2 * first @ first.T)[1]
    right = torch.linalg.eigh(0.2 * first.T @ first)[1]
    rotated = left.T @ second @ right
    update = (0.1 * rotated) / ((0.2 * rotated.square()).sqrt() + 1e-8)
    rate = 0.1 * math.sqrt(1 - 0.8) / (1 - 0.9)  # the moments' first step
    expected = start - rate * left @ update @ right.T
    # the null space of R has no basis of its own: the update there depends on the one that was picked
    torch.testing.assert_close(left.T @ (layer.weight.detach() - expected) @ right[:, 1:], torch.zeros(3, 3), **LOOSE)


LOOSE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.mark.parametrize("inner", INNERS, ids=name)
def test_one_object_with_hooks_and_a_state_dict(inner: Inner) -> None:
    """Three steps, load_state_dict into a second one, three more: as six steps; hooks run once per step."""
    whole, halves = copies(2)
    straight, first = inner.build(whole), inner.build(halves)
    seen: list[str] = []
    first.register_step_pre_hook(lambda *_: seen.append("pre"))
    first.register_step_post_hook(lambda *_: seen.append("post"))
    for step in range(6):
        with_gradients(whole, step)
        straight.step()
    for step in range(3):
        with_gradients(halves, step)
        first.step()
    assert seen == ["pre", "post"] * 3
    second = inner.build(halves)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(3, 6):
        with_gradients(halves, step)
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True))


def test_learning_rate_reaches_every_part() -> None:
    model = copies(1)[0]
    inner = Muon().build(model)
    before = [p.detach().clone() for p in model.parameters()]
    with_gradients(model, 0)
    for group in inner.param_groups:
        group["lr"] = 0.0
    inner.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_output_weights_of_a_pipeline_stage_are_no_hidden_matrix() -> None:
    """Muon trains the stages as it trains the whole model."""
    config = ModelConfig(preset="nano", tied_embeddings=False)
    made = [build_model(config, vocab_size=32, max_tokens=8, seed=0, eos_id=0) for _ in range(3)]
    stages = [StageModule(made[i], i, 2) for i in range(2)]
    names = {id(p): n for m in [*stages, made[2]] for n, p in m.named_parameters()}
    hidden, others = ([names[id(p)] for p in half] for half in hidden_matrices(made[2]))
    parts = [hidden_matrices(stage) for stage in stages]
    assert sorted(names[id(p)] for part in parts for p in part[0]) == sorted(hidden)
    assert sorted(names[id(p)] for part in parts for p in part[1]) == sorted(others)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("inner", [i for i in INNERS if not isinstance(i, AdamW)], ids=name)
def test_resume_is_exact(tmp_path: Path, corpus: Path, inner: Inner) -> None:
    """Stopped inside a round, with every state on disk as tensors and JSON."""
    optimizer = InnerConfig(optimizer=dataclasses.replace(inner, lr=3e-3))  # pyright: ignore[reportCallIssue]
    whole = runs.small(corpus, tmp_path / "whole", inner=optimizer)
    assert train(whole) == 0
    parts = dataclasses.replace(whole, run_dir=tmp_path / "parts")
    stopped = dataclasses.replace(parts, checkpoint=dataclasses.replace(parts.checkpoint, stop_at_step=7))
    assert train(stopped) == 3
    assert train(dataclasses.replace(parts, resume=True)) == 0
    runs.assert_same(runs.outcome(tmp_path / "parts"), runs.outcome(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        (Lion(lr=0.0), "inner.optimizer.lr = 0.0"),
        (Lion(beta2=1.0), "inner.optimizer.beta2 = 1.0"),
        (Gpa(average=1.0), "inner.optimizer.average = 1.0"),
        (Gpa(at=0.0), "inner.optimizer.at = 0.0"),
        (Savic(scale_every=0), "inner.optimizer.scale_every = 0"),
        (Savic(floor=0.0), "inner.optimizer.floor = 0.0"),
        (Savic(scaling="oasis"), "inner.optimizer.scaling = 'oasis'"),  # type: ignore[arg-type]
        (Muon(momentum=1.0), "inner.optimizer.momentum = 1.0"),
        (Muon(iterations=0), "inner.optimizer.iterations = 0"),
        (Muon(weight_decay=-1.0), "inner.optimizer.weight_decay = -1.0"),
        (Soap(every_steps=0), "inner.optimizer.every_steps = 0"),
        (Soap(largest_dim=0), "inner.optimizer.largest_dim = 0"),
    ],
    ids=str,
)
def test_refused(inner: Inner, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        inner.check()


@pytest.mark.parametrize("inner", [Lion(), Soap()], ids=name)
def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, inner: Inner) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ConfigError, match=r"pip install 'lowcomm\[optimizers\]'"):
        inner.check()


def test_nothing_to_optimize_is_refused() -> None:
    with pytest.raises(ConfigError, match="no trainable parameter"):
        Combined([])


# learning rates


def factors(schedule: LrSchedule, *, warmup: float = 0.1, lowest: float = 0.1, decay: float = 0.2) -> list[float]:
    return [lr_factor(step, 100, warmup, lowest, schedule, decay) for step in range(100)]


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
def test_every_lr_schedule_warms_up_stays_in_range_and_may_be_constant(schedule: LrSchedule) -> None:
    found = factors(schedule)
    assert found[:10] == [(step + 1) / 10 for step in range(10)]
    assert all(0.1 <= f <= 1 for f in found[10:])
    assert all(after <= before for before, after in pairwise(found[9:]))
    assert max(abs(after - before) for before, after in pairwise(found)) < 0.101  # no jump
    assert set(factors(schedule, warmup=0.0, lowest=1.0)) == {1.0}


def test_lr_schedules_are_their_equations() -> None:
    cosine, linear, wsd, root = (factors(s) for s in ("cosine", "linear", "wsd", "inverse_sqrt"))
    assert cosine[55] == pytest.approx(0.55) and linear[55] == pytest.approx(0.55)
    assert set(wsd[9:81]) == {1.0} and wsd[90] == pytest.approx(0.55) and wsd[99] == pytest.approx(0.1 + 0.9 / 20)
    assert root[39] == pytest.approx(0.5) and root[99] == pytest.approx(10**-0.5)
    assert set(factors("constant")[9:]) == {1.0}
    assert factors("wsd", warmup=0.0, decay=1.0) == pytest.approx(factors("linear", warmup=0.0))
    with pytest.raises(ConfigError, match=r"inner\.decay_fraction = 0.6 is not allowed: at most 0.5"):
        InnerConfig(lr_schedule="wsd", warmup_fraction=0.5, decay_fraction=0.6).check()


def test_a_run_trains_at_the_rates_of_its_schedule(tmp_path: Path) -> None:
    corpus = runs.write_corpus(tmp_path)
    inner = InnerConfig(optimizer=AdamW(lr=0.01), lr_schedule="wsd", warmup_fraction=0.25, decay_fraction=0.5)
    config = runs.small(corpus, tmp_path / "run", inner=inner, log_every=1)
    assert train(config) == 0
    told = [line["lr"] for line in runs.metrics(tmp_path / "run") if line["event"] == "step" and line["island"] == 0]
    assert told == pytest.approx([0.01 * lr_factor(step, 12, 0.25, 0.1, "wsd", 0.5) for step in range(12)])
