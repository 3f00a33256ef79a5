"""Sampled clients, unequal local steps, FedProx and SCAFFOLD: reductions, processes, resume, accounting, refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import lowcomm.local
import lowcomm.sampling
from lowcomm.aggregate import Mean
from lowcomm.codec import ErrorFeedback, Int4, LocalResidual, TopK
from lowcomm.config import RunConfig, SyncConfig
from lowcomm.config_check import check
from lowcomm.hooks.control_variates import ControlVariates
from lowcomm.local import FedProx, Objective, Scaffold
from lowcomm.model import LoRA, ModelConfig
from lowcomm.outer import SGD
from lowcomm.privacy import AdaptiveClip, ClientGaussian, Released, epsilon
from lowcomm.sampling import FixedSize, Poisson, Sampling
from lowcomm.schedule import EveryStep
from lowcomm.state.outgoing import Outgoing
from lowcomm.state.spec import Clients
from lowcomm.sync import LocalSGD
from lowcomm.trainer import train
from lowcomm.types import ConfigError
from tests.methods import OBJECTIVES, SAMPLINGS, name
from tests.support import runs, toy

RECIPE = """
from pathlib import Path
from tests.sync.test_clients import clients_run

def everything():
    return clients_run(Path({corpus!r}), None)
"""


def build(islands: int, clients: Clients | None, every: int = 4, **settings: Any) -> LocalSGD:
    models = [toy.Net() for _ in range(islands)]
    return LocalSGD(models, [toy.adamw(m) for m in models], every=every, clients=clients, **settings)


def train_rounds(sync: LocalSGD, steps: int = 12) -> list[Any]:
    """Trains as the trainer does; returns the reports."""
    reports: list[Any] = []
    sync.listeners.append(reports.append)
    for step in range(steps):
        for i, (replica, island) in enumerate(zip(sync.replicas, sync.transport.local, strict=True)):
            if sync.rests(i):
                sync.rest(i)
                continue
            x, y = toy.batch(island, step)
            (replica.model(x) - y).square().mean().backward()
            sync.count_tokens(len(x), i)
            replica.inner.step()
            replica.inner.zero_grad()
    return reports


def variates(sync: LocalSGD) -> ControlVariates:
    (hook,) = sync.state.hooks
    assert isinstance(hook, ControlVariates)
    return hook


def weights(sync: LocalSGD) -> torch.Tensor:
    return toy.flat(list(sync.weights().values()))


@pytest.mark.parametrize(
    "clients",
    [
        Clients(sampling=FixedSize(count=3)),
        Clients(sampling=Poisson(rate=1.0)),
        Clients(local_steps=(4, 4, 4)),
        Clients(objective=FedProx(mu=0.0)),
    ],
    ids=name,
)
def test_settings_that_ask_for_nothing_are_fedavg_bit_for_bit(clients: Clients) -> None:
    plain, other = build(3, None), build(3, clients)
    train_rounds(plain)
    train_rounds(other)
    assert torch.equal(weights(plain), weights(other))


def test_scaffold_with_one_island_is_plain() -> None:
    plain, other = build(1, None), build(1, Clients(objective=Scaffold()))
    train_rounds(plain)
    train_rounds(other)
    assert torch.equal(weights(plain), weights(other))
    assert torch.equal(variates(other).common[0], variates(other).own[0][0])
    assert bool(variates(other).common[0].any())


def test_scaffold_s_controls_are_the_papers() -> None:
    """With SGD and no clipping, c_k' is option II's c_k - c + (x - y_k) / (K eta); c their mean."""
    models = [toy.Net() for _ in range(3)]
    inners = [toy.sgd(m) for m in models]
    sync = LocalSGD(models, inners, every=4, outer=SGD(lr=1.0), clients=Clients(objective=Scaffold()))
    for first in (0, 4):
        x, held = weights(sync), variates(sync)
        c, own = held.common[0].clone(), [o[0].clone() for o in held.own]
        seen: list[torch.Tensor] = []
        for step in range(first, first + 4):
            if step == first + 3:
                seen = []
            for i, model in enumerate(models):
                inputs, targets = toy.batch(i, step)
                (model(inputs) - targets).square().mean().backward()
                if step == first + 3:
                    after = [p.detach() - 0.05 * (p.grad + d) for p, d in _with_control(sync, i, c, own[i])]
                    seen.append(toy.flat(after))
                inners[i].step()
                inners[i].zero_grad()
        n = len(x)
        for i, y in enumerate(seen):
            expected = own[i][:n] - c[:n] + (x - y) / (4 * 0.05)
            torch.testing.assert_close(held.own[i][0][:n], expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(held.common[0], torch.stack([o[0] for o in held.own]).mean(0), rtol=1e-4, atol=1e-6)


def _with_control(sync: LocalSGD, i: int, c: torch.Tensor, own: torch.Tensor) -> list[tuple[Any, torch.Tensor]]:
    fragment = sync.state.fragments[0]
    return [(sync.replicas[i].params[n], d) for n, d in fragment.views(c - own).items()]


def test_fedprox_keeps_clients_near() -> None:
    norms = []
    for mu in (0.0, 10.0):
        models = [toy.Net() for _ in range(2)]
        clients = Clients(objective=FedProx(mu=mu))
        sync = LocalSGD(models, [toy.sgd(m) for m in models], every=8, outer=SGD(lr=1.0), clients=clients)
        norms.append(sum(train_rounds(sync, 8)[0].delta_norms))
    assert norms[1] < 0.8 * norms[0]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=name)
def test_only_sampled_clients_train_and_are_counted(sampling: Sampling) -> None:
    sync = build(4, Clients(sampling=sampling))
    reports = train_rounds(sync, 40)
    tokens = [0.0] * 4
    for report in reports:
        drawn = sampling.draw(4, 0, report.round.index)
        assert {k for k, w in enumerate(report.weights) if w} == drawn
        for k in drawn:
            tokens[k] += 4 * (4 + k)
    assert [r.tokens for r in sync.replicas] == tokens and sync.round == 10
    held = [toy.flat(r.tensors(sync.state.fragments[0])) for r in sync.replicas]
    assert all(torch.equal(held[0], h) for h in held)


def test_an_empty_round_commits_nothing_and_costs_nothing() -> None:
    sampling = Poisson(rate=0.3)
    empty = next(t for t in range(100) if not sampling.draw(2, 0, t))
    sync = build(2, Clients(sampling=sampling))
    train_rounds(sync, 4 * empty)
    before, sent = weights(sync), list(sync.transport.sent_bytes)
    report = train_rounds(sync, 4)[0]
    assert torch.equal(before, weights(sync)) and sync.transport.sent_bytes == sent and sync.round == empty + 1
    assert report.weights == [0.0, 0.0] and "nothing is committed" in report.notes[0]


def test_an_unsampled_island_sends_no_contribution() -> None:
    sync = build(4, Clients(sampling=FixedSize(count=1)))
    start = list(sync.transport.sent_bytes)
    sent = [0] * 4
    train_rounds(sync, 4)
    (drawn,) = FixedSize(count=1).draw(4, 0, 0)
    sent = [now - then for now, then in zip(sync.transport.sent_bytes, start, strict=True)]
    vector = (sync.state.fragments[0].size * 4 // 4 + 8) * 3  # each part with its checksum
    assert all(sent[drawn] - s == vector for k, s in enumerate(sent) if k != drawn)


def test_poisson_and_fixed_size_draw_as_often_as_they_say() -> None:
    poisson, fixed = Poisson(rate=0.3), FixedSize(count=2)
    drawn = [poisson.draw(10, 7, t) for t in range(500)]
    assert abs(sum(map(len, drawn)) / 5000 - 0.3) < 0.03
    assert {len(fixed.draw(10, 7, t)) for t in range(50)} == {2}
    counts = [sum(k in fixed.draw(10, 7, t) for t in range(500)) for k in range(10)]
    assert min(counts) > 60
    assert [fixed.draw(10, 7, t) for t in range(5)] != [fixed.draw(10, 8, t) for t in range(5)]


def test_a_sampled_client_that_drops_is_left_out() -> None:
    sync = build(4, Clients(sampling=FixedSize(count=3)))
    bad = min(FixedSize(count=3).draw(4, 0, 0))
    with torch.no_grad():
        next(iter(sync.replicas[bad].params.values())).fill_(torch.nan)
    report = train_rounds(sync, 4)[0]
    assert list(report.dropped) == [bad] and report.weights[bad] == 0 and sum(w > 0 for w in report.weights) == 2


def test_local_steps_weigh_by_what_was_trained() -> None:
    sync = build(2, Clients(local_steps=(1, 4)))
    assert train_rounds(sync, 4)[0].weights == [4 / 24, 20 / 24]


def test_bounded_weights() -> None:
    assert Mean(by="bounded", most_tokens=10.0).weights([5.0, 20.0, 40.0]) == [0.2, 0.4, 0.4]
    assert Mean(by="bounded", most_tokens=1e9).weights([5.0, 20.0]) == Mean().weights([5.0, 20.0])
    with pytest.raises(ConfigError, match="most_tokens = None"):
        Mean(by="bounded")


def clients_run(corpus: Path, run_dir: Path | None) -> RunConfig:
    sync = SyncConfig(
        every=3,
        outer=SGD(lr=1.0),
        sampling=FixedSize(count=2),
        local_steps=(3, 2, 1),
        objective=Scaffold(),
        codec=ErrorFeedback(codec=TopK(chunk=64, k=8)),
    )
    model = ModelConfig(preset="nano", tuning=LoRA(rank=2))
    return runs.small(corpus, run_dir, islands=3, steps=12, sync=sync, model=model)


def test_processes_and_resumed_runs_give_the_simulations_bits(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    corpus = runs.write_corpus(tmp_path / "text")
    config = clients_run(corpus, tmp_path / "whole")
    assert train(config) == 0
    whole = runs.outcome(tmp_path / "whole")
    halves = dataclasses.replace(config, run_dir=tmp_path / "halves")
    stop = dataclasses.replace(config.checkpoint, stop_at_step=5)
    assert train(dataclasses.replace(halves, checkpoint=stop)) == 3
    assert train(dataclasses.replace(halves, resume=True)) == 0
    runs.assert_same(runs.outcome(tmp_path / "halves"), whole)
    recipe = tmp_path / "clients.py"
    recipe.write_text(RECIPE.format(corpus=str(corpus)), encoding="utf-8")
    arguments = ["train", f"{recipe}:everything", "--transport", "collective", "--run-dir", str(tmp_path / "real")]
    assert runs.run_islands(arguments, 3, tmp_path / "log") == [0, 0, 0], (tmp_path / "log").read_text()
    runs.assert_same(runs.outcome(tmp_path / "real"), whole)


def private_run(tmp_path: Path, sampling: Sampling) -> dict[str, Any]:
    (tmp_path / "text").mkdir()
    corpus = runs.write_corpus(tmp_path / "text")
    privacy = ClientGaussian(clip=0.1, noise_multiplier=2.0, seed=3)
    rule = Mean(by="uniform")
    sync = SyncConfig(every=3, outer=SGD(lr=1.0), aggregator=rule, privacy=privacy, quorum=1.0, sampling=sampling)
    assert train(runs.small(corpus, tmp_path / "run", islands=3, steps=12, sync=sync)) == 0
    return runs.summary(tmp_path / "run")["privacy"]


def test_poisson_is_amplified_and_a_fixed_size_is_not(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "f").mkdir()
    spent = private_run(tmp_path / "p", Poisson(rate=0.4))
    wanted = epsilon([Released(noise_multiplier=2.0, count=4, probability=0.4)], 1e-5)
    assert spent["epsilon_total"] == wanted
    took = [sum(k in Poisson(rate=0.4).draw(3, 0, t) for t in range(4)) for k in range(3)]
    assert spent["epsilon_known_sample"] == epsilon([Released(noise_multiplier=2.0, count=max(took))], 1e-5)
    spent = private_run(tmp_path / "f", FixedSize(count=2))
    took = [sum(k in FixedSize(count=2).draw(3, 0, t) for t in range(4)) for k in range(3)]
    assert spent["epsilon_total"] == epsilon([Released(noise_multiplier=2.0, count=max(took))], 1e-5)
    assert wanted < spent["epsilon_total"]


def test_private_poisson_divides_by_the_expected_number() -> None:
    """Without noise and clip: the sum of those sampled over q n; an empty round is committed, as noise alone."""
    off = ClientGaussian(clip=1e30, noise_multiplier=0.0, seed=1)
    rule, sampling = Mean(by="uniform"), Poisson(rate=0.5)
    index = next(t for t in range(100) if len(sampling.draw(2, 0, t)) == 1)
    sync = build(2, Clients(sampling=sampling), outer=SGD(lr=1.0), aggregator=rule, privacy=off, quorum=1.0)
    train_rounds(sync, 4 * index)
    (drawn,) = sampling.draw(2, 0, index)
    start, kept = weights(sync), {}
    hook = sync.state.privacy
    assert hook is not None
    release = hook.release

    def keep(out: Outgoing) -> None:
        kept[drawn] = [p.detach().clone() for p in sync.replicas[drawn].tensors(sync.state.fragments[0])]
        release(out)

    hook.release = keep  # type: ignore[method-assign]
    report = train_rounds(sync, 4)[0]
    # the one that was sampled trained alone: its own Delta, over q n = 1
    alone = toy.flat(list(kept[drawn]))
    torch.testing.assert_close(weights(sync), alone, rtol=1e-4, atol=1e-5)
    assert report.weights == [0.5, 0.5] and not torch.equal(start, alone)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampling": FixedSize(count=9)}, r"sync\.sampling\.count = 9"),
        ({"sampling": Poisson(rate=0.0)}, r"sync\.sampling\.rate = 0\.0"),
        ({"sampling": FixedSize(), "codec": Int4()}, r"exchange = 'reduce' is not allowed with sync\.sampling"),
        ({"sampling": FixedSize(), "codec": LocalResidual(codec=TopK())}, r"sync\.codec = LocalResidual"),
        ({"sampling": FixedSize(), "schedule": EveryStep()}, r"sync\.schedule = EveryStep"),
        ({"local_steps": (1, 2)}, r"sync\.local_steps = \(1, 2\)"),
        ({"local_steps": (1, 2, 99)}, r"sync\.local_steps = .* 1 to sync\.every"),
        ({"objective": FedProx(mu=-1.0)}, r"sync\.objective\.mu = -1\.0"),
        ({"objective": FedProx(), "schedule": EveryStep()}, r"sync\.schedule = EveryStep"),
        (
            {"objective": Scaffold(), "aggregator": Mean(by="uniform"), "privacy": ClientGaussian()},
            r"sync\.objective = Scaffold .* control variates would leave",
        ),
        (
            {"sampling": FixedSize(), "aggregator": Mean(by="uniform"), "privacy": AdaptiveClip()},
            r"its clip is learnt from all islands",
        ),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    config = runs.small(tmp_path, tmp_path / "run", islands=3, sync=SyncConfig(every=4, **changes))
    with pytest.raises(ConfigError, match=words) as caught:
        check(config, 3)
    assert "Fix: " in str(caught.value)


def test_no_method_is_forgotten() -> None:
    for package, base, listed in (
        (lowcomm.local, Objective, OBJECTIVES),
        (lowcomm.sampling, Sampling, SAMPLINGS),
    ):
        found = {n for n in package.__all__ if isinstance(c := getattr(package, n), type) and issubclass(c, base)}
        assert found - {base.__name__} == {type(m).__name__ for m in listed}
