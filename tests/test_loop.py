"""What a user's own loop asks of a LocalSGD: state on disk, figures, and words about what can't work."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from lowcomm.outer import Nesterov
from lowcomm.round.digest import sha256_weights
from lowcomm.schedule import EveryH, Schedule
from lowcomm.sync import LocalSGD
from lowcomm.types import CheckpointError, ConfigError
from tests import toy
from tests.methods import SCHEDULES, name
from tests.threads import Hub, Threaded, run_threads


def _weights(sync: LocalSGD) -> list[str]:
    own = [sha256_weights({n: p.detach() for n, p in r.params.items()}) for r in sync.replicas]
    return [sha256_weights(sync.weights()), *own]


def _train(sync: LocalSGD, first: int, last: int) -> None:
    for step in range(first, last):
        toy.train_step(sync, step)


# save and load


@pytest.mark.parametrize("stop", [3, 6, 9])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_a_loop_goes_on_to_the_bits_of_one_that_never_stopped(schedule: Schedule, stop: int, tmp_path: Path) -> None:
    """Stopped inside a round: each island's own work, moments, round, and exchanges in flight come back."""
    whole = toy.build(2, schedule=schedule)
    _train(whole, 0, toy.STEPS)
    whole.finish()
    first = toy.build(2, schedule=schedule)
    _train(first, 0, stop)
    assert first.save(tmp_path) == tmp_path / f"{stop:06d}"
    again = toy.build(2, schedule=schedule)
    with torch.no_grad():
        for replica in again.replicas:
            replica.params["scale"].fill_(7.0)
    assert again.load(tmp_path) == stop == again.step
    assert again.round == first.round
    _train(again, stop, toy.STEPS)
    again.finish()
    assert _weights(again) == _weights(whole)
    assert again.stats.sent_bytes == whole.stats.sent_bytes


def test_every_island_saves_its_own_and_all_load_the_same_step(tmp_path: Path) -> None:
    """Separate disks: the third save of island 1 is missing, so that both go on from the second."""
    hub, ends = Hub(2), [list[str]() for _ in range(2)]

    def body(me: int) -> None:
        disk = tmp_path / str(me)
        sync = toy.build(1, transport=Threaded(hub, me))
        assert sync.load(disk) == 0
        for step in range(9):
            toy.train_step(sync, step)
            if step in (2, 5, 8) and not (me == 1 and step == 8):
                sync.save(disk)
        assert sorted(p.name for p in disk.iterdir()) == [["000006", "000009"], ["000003", "000006"]][me]
        sync = toy.build(1, transport=Threaded(hub, me))
        assert sync.load(disk) == 6
        _train(sync, 6, 12)
        sync.finish()
        ends[me] = _weights(sync)

    run_threads(2, body)
    plain = toy.build(2)
    _train(plain, 0, 12)
    plain.finish()
    assert ends == [_weights(plain)[:2], _weights(plain)[:2]]


def test_state_that_only_some_islands_have_is_refused_by_all(tmp_path: Path) -> None:
    hub, said = Hub(2), ["", ""]

    def body(me: int) -> None:
        sync = toy.build(1, transport=Threaded(hub, me))
        toy.train_step(sync, 0)
        if me == 0:
            sync.save(tmp_path)
        with pytest.raises(CheckpointError) as raised:
            sync.load(tmp_path)
        said[me] = str(raised.value)

    run_threads(2, body)
    assert said[0] == said[1] and "island 0 has 000001; island 1 has none" in said[0] and "Fix: " in said[0]


def test_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    sync = toy.build(2)
    toy.train_step(sync, 0)
    sync.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"every = 4, now it is 5\. Fix: "):
        toy.build(2, every=5).load(tmp_path)
    with pytest.raises(CheckpointError, match=r"momentum=0\.6.*momentum=0\.5"):
        toy.build(2, outer=Nesterov(lr=0.7, momentum=0.5)).load(tmp_path)
    with pytest.raises(ConfigError, match=r"keep = 0 .*Fix: "):
        sync.save(tmp_path, keep=0)


def test_a_torn_state_gives_way_to_the_one_before(tmp_path: Path) -> None:
    sync = toy.build(2)
    for step in range(4):
        toy.train_step(sync, step)
        sync.save(tmp_path)
    torn = tmp_path / "000004" / "island-00001" / "global.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    assert toy.build(2).load(tmp_path) == 3


# weights that somebody else writes


def _one_island() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = toy.Net()
    return model, toy.adamw(model)


def _step(model: nn.Module, inner: torch.optim.Optimizer, step: int) -> None:
    x, y = toy.batch(0, step)
    (model(x) - y).square().mean().backward()
    inner.step()
    inner.zero_grad()


def test_a_checkpoint_that_is_restored_past_the_sync_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model, inner = _one_island()
    sync = LocalSGD(model, inner, every=3)
    kept = {n: t.clone() for n, t in model.state_dict().items()}
    for step in range(8):
        _step(model, inner, step)
        with caplog.at_level(logging.WARNING, "lowcomm"):
            sync.finish() if step == 4 else None
    assert not caplog.records
    model.load_state_dict(kept)
    _step(model, inner, 8)
    _step(model, inner, 9)
    assert len(caplog.records) == 1
    assert "was written between inner steps 8 and 9" in caplog.text and "sync.load(path)" in caplog.text


def test_a_loop_that_resumes_without_its_sync_is_told(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    model, inner = _one_island()
    _step(model, inner, 0)
    sync = LocalSGD(model, inner, every=3)
    _step(model, inner, 1)
    assert "the outer optimizer and the round start anew" in caplog.text
    sync.save(tmp_path)
    caplog.clear()
    model, inner = _one_island()
    _step(model, inner, 0)
    sync = LocalSGD(model, inner, every=3)
    assert sync.load(tmp_path) == 1
    _step(model, inner, 1)
    assert not caplog.records


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_what_a_sync_writes_is_not_told(schedule: Schedule, caplog: pytest.LogCaptureFixture) -> None:
    models = [toy.Net() for _ in range(2)]
    sync = LocalSGD(models, [toy.adamw(m) for m in models], every=4, schedule=schedule)
    _train(sync, 0, toy.STEPS)
    assert not [r for r in caplog.records if "was written" in r.message]


# figures


def test_stats_are_those_of_the_transport() -> None:
    sync = toy.build(3, schedule=EveryH())
    start = sync.stats
    assert (start.steps, start.rounds, start.sent_bytes) == (0, 0, start.start_bytes)
    assert start.start_bytes > 0
    _train(sync, 0, 9)
    now = sync.stats
    assert (now.steps, now.rounds, now.start_bytes) == (9, 2, start.start_bytes)
    assert now.sent_bytes == sync.transport.sent_bytes[0] > start.sent_bytes
    assert now.sync_s >= now.blocked_s > 0
