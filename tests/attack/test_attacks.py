"""Attacks: what is sent, that nobody attacks unasked, that runs name it, and that a resumed attacker goes on alike."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from lowcomm.aggregate import Aggregator, Krum, Mean, Median
from lowcomm.attack import (
    ALIE,
    Attack,
    FreeRider,
    Gaussian,
    InnerProduct,
    LabelNoise,
    NotANumber,
    Replay,
    Scaling,
    Seen,
    SignFlip,
)
from lowcomm.cli import main
from lowcomm.config import RunConfig, SyncConfig
from lowcomm.config_check import check
from lowcomm.exchange.gossip import Gossip
from lowcomm.hooks.attack import Corruption
from lowcomm.island import IslandConfig
from lowcomm.outer import SGD
from lowcomm.run.poisoned import PoisonedShard
from lowcomm.schedule import EveryStep, OneStepDelay, Schedule
from lowcomm.state.checkpoint import global_part, island_part, load_global, load_island
from lowcomm.state.spec import Clients
from lowcomm.sync import LocalSGD
from lowcomm.trainer import train
from lowcomm.transport import Simulated
from lowcomm.types import ConfigError, Round, SyncError
from tests.methods import ATTACKS, name
from tests.support import runs, toy

ROUND = Round(index=3, step=12, fragments=(0,), seed=9, island=1)
DELTA = torch.randn(500, generator=torch.Generator().manual_seed(1))
HONEST = torch.randn(5, 500, generator=torch.Generator().manual_seed(2)) + DELTA
SEEN = Seen(round=ROUND, honest=HONEST, first=HONEST[0])


def test_what_each_sends() -> None:
    assert torch.equal(SignFlip(factor=2.0).corrupt(DELTA, SEEN), -2 * DELTA)
    assert torch.equal(Scaling(factor=10.0).corrupt(DELTA, SEEN), 10 * DELTA)
    assert torch.equal(Replay().corrupt(DELTA, SEEN), HONEST[0])
    assert torch.equal(Replay().corrupt(DELTA, dataclasses.replace(SEEN, first=None)), DELTA)
    assert bool(NotANumber().corrupt(DELTA, SEEN).isnan().all())
    mean = HONEST.mean(dim=0)
    torch.testing.assert_close(InnerProduct(strength=0.3).corrupt(DELTA, SEEN), -0.3 * mean)
    found = (mean - ALIE(deviations=1.2).corrupt(DELTA, SEEN)) / HONEST.std(dim=0)
    torch.testing.assert_close(found, torch.full_like(found, 1.2), rtol=1e-4, atol=1e-4)
    for attack, size in ((FreeRider(), 1.0), (Gaussian(factor=5.0), 5.0)):
        noise = attack.corrupt(DELTA, SEEN)
        torch.testing.assert_close(noise.norm(), size * DELTA.norm())
        assert float(torch.cosine_similarity(noise, DELTA, dim=0).abs()) < 0.3
        assert torch.equal(noise, attack.corrupt(DELTA, SEEN))
        other = dataclasses.replace(SEEN, round=dataclasses.replace(ROUND, island=2))
        assert not torch.equal(noise, attack.corrupt(DELTA, other))


def test_label_noise_draws_the_share_that_it_says_and_no_ignored_target() -> None:
    targets = torch.arange(4000) % 97
    targets[::5] = -100
    drawn = LabelNoise(fraction=0.5).poison(targets, 97, torch.Generator().manual_seed(0))
    assert bool((drawn[::5] == -100).all())
    counted = targets != -100
    assert 0.45 < float((drawn != targets)[counted].float().mean()) < 0.55
    assert torch.equal(LabelNoise().corrupt(DELTA, SEEN), DELTA)


def islands_of(attack: Attack | None, rule: Aggregator | None = None, count: int = 5) -> LocalSGD:
    models = [toy.Net() for _ in range(count)]
    clients = Clients(attack=attack, allow_attack=attack is not None)
    return LocalSGD(
        models, [toy.adamw(m) for m in models], every=toy.EVERY, outer=SGD(lr=1.0), aggregator=rule or Mean(),
        transport=Simulated(count), clients=clients,
    )  # fmt: skip


@pytest.mark.parametrize("attack", [a for a in ATTACKS if not a.poisons], ids=name)
def test_only_attackers_send_something_else_and_only_listeners_cost_bytes(attack: Attack) -> None:
    """Against the same round without it; of what an attacker itself trained nothing is lost before that."""
    plain, attacked = islands_of(None, Median()), islands_of(attack, Median())
    (hook,) = attacked.state.hooks
    assert isinstance(hook, Corruption)
    notes: list[str] = []
    attacked.listeners.append(lambda report: notes.extend(report.notes))
    shaken = attacked.transport.sent_bytes[0] - plain.transport.sent_bytes[0]  # what the handshake says of the attack
    for step in range(toy.EVERY * 2):
        toy.train_step(plain, step)
        toy.train_step(attacked, step)
    same = all(torch.equal(w, attacked.weights()[n]) for n, w in plain.weights().items())
    assert not same
    assert sum(attack.said in n for n in notes) == 2
    assert (hook.overheard_bytes > 0) == attack.listens
    sent = zip(plain.transport.sent_bytes, attacked.transport.sent_bytes, strict=True)
    assert all(b - a == hook.overheard_bytes + shaken for a, b in sent)


def test_nan_under_a_finite_norm_ends_a_mean_and_not_a_median() -> None:
    mean, median = islands_of(NotANumber(islands=(2,))), islands_of(NotANumber(islands=(2,)), Median())
    dropped: list[dict[int, str]] = []
    median.listeners.append(lambda report: dropped.append(dict(report.dropped)))
    with pytest.raises(SyncError, match=r"norm nan|not finite"):
        for step in range(toy.EVERY):
            toy.train_step(mean, step)
    for step in range(toy.EVERY):
        toy.train_step(median, step)
    assert list(dropped[0]) == [2]


def test_krum_takes_none_that_flips_its_sign() -> None:
    sync = islands_of(SignFlip(islands=(4,), factor=3.0), Krum(faulty=1, best=3))
    notes: list[str] = []
    sync.listeners.append(lambda report: notes.extend(report.notes))
    for step in range(2 * toy.EVERY):
        toy.train_step(sync, step)
    told = [n for n in notes if "Krum" in n]
    assert len(told) == 2
    assert all("4" in n.split("left out ")[1] for n in told)


@pytest.mark.parametrize("attack", [Replay(islands=(1,)), ALIE(islands=(1,))], ids=name)
def test_an_attacker_goes_on_from_a_checkpoint_with_the_same_bits(attack: Attack) -> None:
    whole, saved, fresh = (islands_of(attack, Median()) for _ in range(3))
    for step in range(toy.STEPS):
        toy.train_step(whole, step)
    for step in range(toy.EVERY + 2):
        toy.train_step(saved, step)
    load_global(fresh.state, global_part(saved.state))
    for i in range(5):
        load_island(fresh.state, i, island_part(saved.state, i))
    for step in range(toy.EVERY + 2, toy.STEPS):
        toy.train_step(fresh, step)
    assert all(torch.equal(w, fresh.weights()[n]) for n, w in whole.weights().items())
    assert whole.state.hooks[0].island_part(1)[1] == fresh.state.hooks[0].island_part(1)[1]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    return runs.write_corpus(tmp_path / "text")


def test_a_run_names_its_attack_and_a_resumed_one_trains_on_the_same_noise(corpus: Path, tmp_path: Path) -> None:
    attack = SyncConfig(every=4, attack=LabelNoise(islands=(1,)), allow_attack=True)
    whole = runs.small(corpus, tmp_path / "whole", sync=attack)
    assert train(whole) == 0
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text(encoding="utf-8"))
    assert summary["attack"] == {"name": "LabelNoise", "islands": [1], "overheard_bytes": 0}
    assert "attack: LabelNoise by islands 1" in (tmp_path / "whole" / "metrics.jsonl").read_text(encoding="utf-8")
    from lowcomm.report.load import load_run
    from lowcomm.report.series import warnings_of

    assert "islands [1] attacked on purpose (LabelNoise)" in warnings_of(load_run(tmp_path / "whole"))
    parts = dataclasses.replace(whole, run_dir=tmp_path / "parts")
    stop = dataclasses.replace(parts.checkpoint, stop_at_step=6)
    assert train(dataclasses.replace(parts, checkpoint=stop)) == 3
    assert train(dataclasses.replace(parts, resume=True)) == 0
    again = json.loads((tmp_path / "parts" / "summary.json").read_text(encoding="utf-8"))
    assert again["weights_sha256"] == summary["weights_sha256"]
    assert train(runs.small(corpus, tmp_path / "sound")) == 0
    sound = json.loads((tmp_path / "sound" / "summary.json").read_text(encoding="utf-8"))
    assert sound["attack"] is None
    assert sound["weights_sha256"] != summary["weights_sha256"]


def test_only_an_attacker_s_reader_is_changed(corpus: Path, tmp_path: Path) -> None:
    from lowcomm.data import build_data
    from lowcomm.run.poisoned import poisoned

    config = runs.small(corpus, tmp_path / "run")
    data = build_data(config.data, 2, 0)
    shards = poisoned([data.shard(0), data.shard(1)], LabelNoise(islands=(1,)), data.vocab_size, 0, (0, 1))
    assert [isinstance(s, PoisonedShard) for s in shards] == [False, True]
    own, plain = shards[1].next_batch(), data.shard(1).next_batch()
    assert torch.equal(own[0], plain[0])
    assert not torch.equal(own[1], plain[1])


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (SignFlip(factor=0.0), r"sync\.attack\.factor = 0\.0"),
        (Scaling(factor=-1.0), r"sync\.attack\.factor = -1\.0"),
        (Gaussian(factor=float("inf")), r"sync\.attack\.factor = inf"),
        (ALIE(deviations=0.0), r"sync\.attack\.deviations = 0\.0"),
        (ALIE(islands=(0, 1, 2)), r"sync\.attack\.islands .* two honest islands.* Fix: name fewer"),
        (InnerProduct(strength=0.0), r"sync\.attack\.strength = 0\.0"),
        (LabelNoise(fraction=1.5), r"sync\.attack\.fraction = 1\.5"),
        (SignFlip(islands=(4,)), r"sync\.attack\.islands = \(4,\) .* 0 to 3.* Fix: \(3,\) is the last one"),
        (SignFlip(islands=()), r"sync\.attack\.islands = \(\)"),
        (SignFlip(islands=(1, 1)), r"sync\.attack\.islands = \(1, 1\)"),
        (SignFlip(islands=(0, 1, 2, 3)), r"sync\.attack\.islands .* not all of them"),
    ],
)
def test_settings_out_of_range_are_refused(attack: Attack, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check(RunConfig(sync=SyncConfig(attack=attack, allow_attack=True)), 4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("schedule", [EveryStep(), OneStepDelay()], ids=name)
def test_schedules_that_it_cannot_attack_are_refused(schedule: Schedule) -> None:
    sync = SyncConfig(attack=SignFlip(), allow_attack=True, schedule=schedule)
    with pytest.raises(ConfigError, match=r"sync\.schedule = .* with sync\.attack = SignFlip.* Fix: use EveryH"):
        check(RunConfig(sync=sync), 4)


def test_it_goes_with_no_exchange_of_neighbours_and_no_island_of_several_ranks() -> None:
    sync = SyncConfig(attack=SignFlip(), allow_attack=True, exchange=Gossip(), outer=SGD(lr=1.0))
    with pytest.raises(ConfigError, match=r"sync\.exchange = Gossip .*sync\.attack = SignFlip"):
        check(RunConfig(sync=sync), 4)
    sync = dataclasses.replace(sync, exchange=None)
    with pytest.raises(ConfigError, match=r"island\.size = 2 .*1 with sync\.attack"):
        check(RunConfig(sync=sync, island=IslandConfig(size=2)), 4)


def test_nobody_attacks_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    """By the command line, with exit code 2, and in a loop of one's own, in its words."""
    assert main(["simulate", "attacks.py:smoke"]) == 2
    told = capsys.readouterr().err
    assert "sync.attack = SignFlip is not allowed" in told
    assert "pass --sync.allow-attack, or leave sync.attack out" in told
    models = [toy.Net() for _ in range(3)]
    with pytest.raises(ConfigError, match=r"clients\.attack = SignFlip .* Fix: pass clients\.allow_attack=True"):
        LocalSGD(
            models, [toy.adamw(m) for m in models], every=4, transport=Simulated(3), clients=Clients(attack=SignFlip())
        )


def test_others_hear_the_norm_of_what_is_sent_unless_it_is_hidden() -> None:
    norms: dict[str, list[float]] = {}
    for attack in (None, Scaling(factor=10.0), NotANumber()):
        sync = islands_of(attack, Median())
        sync.listeners.append(lambda report, key=str(attack): norms.update({key: list(report.delta_norms)}))
        for step in range(toy.EVERY):
            toy.train_step(sync, step)
    plain, scaled, hidden = norms.values()
    assert scaled[0] == pytest.approx(10 * plain[0], rel=1e-5)
    assert scaled[1:] == plain[1:]
    assert hidden == plain


def test_a_replayed_delta_is_always_the_first() -> None:
    sync = islands_of(Replay(islands=(1,)), Median())
    (hook,) = sync.state.hooks
    assert isinstance(hook, Corruption)
    for step in range(toy.EVERY):
        toy.train_step(sync, step)
    first = hook.first[1][0].clone()
    for step in range(toy.EVERY, 3 * toy.EVERY):
        toy.train_step(sync, step)
    assert torch.equal(hook.first[1][0], first)
    assert not hook.first[0]
