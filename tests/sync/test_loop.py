"""What a user's own loop asks of a LocalSGD: state on disk, figures, and words about what can't work."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

import lowcomm as lc
from lowcomm.aggregate import Mean
from lowcomm.codec import Fp32
from lowcomm.config import SyncConfig
from lowcomm.exchange.buffered import Buffered
from lowcomm.exchange.gossip import Gossip
from lowcomm.local import FedProx
from lowcomm.outer import SGD, Nesterov, Pier
from lowcomm.sampling import FixedSize
from lowcomm.schedule import EveryH, Growing, Schedule, Streaming
from lowcomm.state.digest import sha256_weights
from lowcomm.state.spec import Clients
from lowcomm.sync import LocalSGD
from lowcomm.sync.arguments import SyncArguments
from lowcomm.topology import Exponential
from lowcomm.trainer import train
from lowcomm.transport import Simulated
from lowcomm.types import CheckpointError, ConfigError, SyncError
from tests.methods import SCHEDULES, name
from tests.support import runs, toy
from tests.support.threads import Hub, Threaded, run_threads


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


OTHER: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("exchange", {"exchange": Gossip()}, {}),
    ("exchange", {}, {"exchange": Gossip()}),
    ("exchange", {"exchange": Gossip()}, {"exchange": Gossip(gamma=0.5)}),
    ("exchange", {"exchange": Gossip()}, {"exchange": Gossip(topology=Exponential())}),
    ("exchange", {"exchange": Buffered(size=2)}, {"exchange": Buffered(size=3)}),
    ("sampling", {"clients": Clients(sampling=FixedSize(count=1))}, {}),
    ("local_steps", {}, {"clients": Clients(local_steps=(4, 2))}),
    ("objective", {"clients": Clients(objective=FedProx(mu=0.1))}, {"clients": Clients(objective=FedProx(mu=0.2))}),
]


@pytest.mark.parametrize(("part", "was", "now"), OTHER)
def test_state_of_another_exchange_or_other_clients_is_refused(
    part: str, was: dict[str, Any], now: dict[str, Any], tmp_path: Path
) -> None:
    def build(parts: dict[str, Any]) -> LocalSGD:
        models = [nn.Linear(2, 2) for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        return LocalSGD(models, [torch.optim.SGD(m.parameters(), lr=0.1) for m in models], every=4, **parts)

    build(was).save(tmp_path)
    assert build(was).load(tmp_path) == 0
    with pytest.raises(CheckpointError, match=rf"was saved with {part} = .* Fix: "):
        build(now).load(tmp_path)


def test_state_that_is_damaged_everywhere_does_not_look_like_none(tmp_path: Path) -> None:
    sync = toy.build(2)
    toy.train_step(sync, 0)
    sync.save(tmp_path)
    for torn in tmp_path.glob("*/*/island.safetensors"):
        torn.write_bytes(torn.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"torn or corrupt .* nothing else was saved\. Fix: "):
        toy.build(2).load(tmp_path)


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    sync, file = toy.build(2), tmp_path / "file"
    file.touch()
    for path in (file, None, 3):
        with pytest.raises(ConfigError, match=r"path = .* Fix: "):
            sync.load(path)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ConfigError, match=r"path = .* Fix: "):
            sync.save(path)  # pyright: ignore[reportArgumentType]


def test_a_model_without_values_is_refused() -> None:
    model = nn.Linear(2, 2, device="meta")
    with pytest.raises(lc.CoverageError, match=r"weight is on the meta device.* load or initialise"):
        LocalSGD(model, torch.optim.SGD(model.parameters(), lr=0.1), every=2)


def test_islands_with_weights_of_their_own_go_on_from_what_each_saved(tmp_path: Path) -> None:
    """Gossip has no global weights by which parts that belong together could be told."""
    hub = Hub(2)

    def build(me: int) -> LocalSGD:
        model, inner = _one_island()
        return LocalSGD(model, inner, every=4, transport=Threaded(hub, me), exchange=Gossip())

    def body(me: int) -> None:
        sync = build(me)
        anchor = sync.state.anchors[0][0].weights
        anchor.fill_(float(me))  # as after rounds with other neighbours
        sync.save(tmp_path)
        again = build(me)
        again.load(tmp_path)
        assert torch.equal(again.state.anchors[0][0].weights, anchor)

    run_threads(2, body)


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


# loops whose processes would train alone, or are averaged twice


@pytest.fixture
def two_ranks() -> Iterator[None]:
    """Rank 0 of a world of two, whose exchanges do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_processes_without_a_group_are_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "2")
    model, inner = _one_island()
    with pytest.raises(ConfigError, match=rf"{variable} = 2 processes .*Fix: torch\.distributed\.init_process_group"):
        lc.DiLoCo(model, inner, every=4, momentum=0.6)
    assert lc.DiLoCo(model, inner, every=4, momentum=0.6, transport=lc.transport.Simulated(1)).stats.rounds == 0
    monkeypatch.setenv(variable, "1")
    model, inner = _one_island()
    assert LocalSGD(model, inner, every=4).transport.islands == 1


def test_several_models_in_each_of_several_processes_are_refused(two_ranks: None) -> None:
    models = [toy.Net() for _ in range(3)]
    with pytest.raises(ConfigError, match=r"3 models .*each of 2 processes.*Fix: .*Simulated\(3\)"):
        LocalSGD(models, [toy.sgd(m) for m in models], every=4)


def test_a_model_that_ddp_averages_over_the_islands_is_refused(two_ranks: None) -> None:
    model = DistributedDataParallel(toy.Net())
    with pytest.raises(ConfigError, match=r"over ranks \[0, 1\] .*every step\. Fix: .* inside, model\.module"):
        LocalSGD(model, toy.sgd(model), every=4, transport=Simulated(1))
    holder = nn.ModuleDict({"net": model})
    with pytest.raises(ConfigError, match=r"model\.net = DistributedDataParallel .*model\.net\.module"):
        LocalSGD(holder, toy.sgd(holder), every=4, transport=Simulated(1))
    alone = dist.new_group([0])
    inside = DistributedDataParallel(toy.Net(), process_group=alone)
    assert LocalSGD(inside, toy.sgd(inside), every=4, transport=Simulated(1)).stats.steps == 0


def test_other_wrappers_are_refused(two_ranks: None) -> None:
    copies = nn.DataParallel(toy.Net())
    with pytest.raises(ConfigError, match=r"model = DataParallel .*Fix: one process per GPU"):
        LocalSGD(copies, toy.sgd(copies), every=4, transport=Simulated(1))
    cut = nn.Linear(4, 4)
    fully_shard(cut, mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(ConfigError, match=r"parameter weight is a DTensor.*Fix: island=lowcomm\.island\.FSDPPart"):
        LocalSGD(cut, toy.sgd(cut), every=4, transport=Simulated(1))
    engine = type("DeepSpeedEngine", (toy.Net,), {})()
    with pytest.raises(ConfigError, match=r"Fix: lowcomm\.deepspeed\.attach"):
        LocalSGD(engine, toy.sgd(engine), every=4, transport=Simulated(1))


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


# words


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (
            lambda m, i: lc.DiLoCo(m, i, every=0, momentum=0.6),
            "every = 0 is not allowed: 1 or more. Fix: 32 suits short runs, 500 long ones.",
        ),
        (
            lambda m, i: LocalSGD(m, i, every=8, schedule=Streaming(fragments=2, by="size", delay=4)),
            "schedule.delay = 4 is not allowed: 0 to 3, below every / fragments. "
            "Fix: a shorter delay, or fewer fragments.",
        ),
        (
            lambda m, i: LocalSGD(m, i, every=8, schedule=Streaming(fragments=3)),
            "schedule.fragments = 3 must be 1 to 1, the model's layers. Fix: schedule.fragments=1, or schedule.by=size",
        ),
        (
            lambda m, i: LocalSGD(m, i, every=2, clients=Clients(sampling=FixedSize(count=1)), schedule=Growing()),
            "schedule = Growing is not allowed with clients.sampling: rounds of islands that rest have a fixed length. "
            "Fix: use EveryH",
        ),
    ],
)
def test_a_library_speaks_of_its_arguments(
    build: Callable[[nn.Module, torch.optim.Optimizer], LocalSGD], says: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        build(*_one_island())
    assert str(raised.value) == says


def test_a_recipe_speaks_of_its_fields(tmp_path: Path) -> None:
    schedule = Streaming(fragments=3)
    config = runs.small(runs.write_corpus(tmp_path), tmp_path / "run", sync=SyncConfig(every=4, schedule=schedule))
    with pytest.raises(ConfigError, match=r"sync\.schedule\.fragments = 3 .*Fix: --sync\.schedule\.fragments "):
        train(config)


# shortcuts

PRESETS = (lc.DiLoCo, lc.FedAvg, lc.SparseLoCo, lc.StreamingDiLoCo, lc.DiLoCoX)


def test_what_shortcuts_pass_on_is_of_the_types_of_local_sgd() -> None:
    wanted = inspect.signature(LocalSGD).parameters
    assert {n: wanted[n].annotation for n in SyncArguments.__annotations__} == {
        n: t.__forward_arg__ for n, t in SyncArguments.__annotations__.items()
    }


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.__name__)
def test_a_shortcut_takes_what_local_sgd_takes(preset: Callable[..., LocalSGD]) -> None:
    wanted, taken = inspect.signature(LocalSGD).parameters, inspect.signature(preset).parameters
    assert not set(wanted) - set(taken) - set(SyncArguments.__annotations__)
    assert all(taken[n].default is None for n in ("outer", "codec", "schedule"))
    model = WithBuffer()
    parts = {"outer": SGD(lr=0.5), "codec": Fp32(), "schedule": Growing(), "aggregator": Mean(by="uniform")}
    rest = {"buffers": {"seen": "local"}, "outer_device": "cpu", "seed": 3, "quorum": 0.75, "on_late": "stop"}
    clients = Clients(objective=FedProx(mu=0.1))
    more = {"transport": Simulated(1), "privacy": None, "late_tolerance_s": 2.0, "clients": clients, "island": None}
    sync = preset(model, toy.sgd(model), every=4, **parts, **rest, **more)
    assert all(getattr(sync.spec, n) == part for n, part in parts.items())
    assert (sync.spec.seed, sync.spec.quorum, sync.spec.clients) == (3, 0.75, clients)
    assert (sync.deadlines.on_late, sync.deadlines.tolerance_s) == ("stop", 2.0)
    assert sync.transport is more["transport"]


class WithBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = toy.Net()
        self.register_buffer("seen", torch.zeros(3))


def _layers(count: int) -> nn.Module:
    return nn.ModuleDict({"layers": nn.Sequential(*(nn.Linear(3, 3) for _ in range(count)))})


@pytest.mark.parametrize("layers", [1, 2, 3, 6])
@pytest.mark.parametrize("every", [1, 2, 3, 5, 10, 24, 100])
def test_defaults_of_streaming_fit_each_other(every: int, layers: int) -> None:
    model = _layers(layers)
    sync = lc.StreamingDiLoCo(model, toy.sgd(model), every=every, steps=1000)
    schedule = sync.spec.schedule
    assert isinstance(schedule, Streaming)
    assert schedule.fragments == min(4, every, layers) and schedule.delay <= 5
    if every >= 24:
        assert schedule.delay == 5
    delayed = lc.StreamingDiLoCo(model, toy.sgd(model), every=every, delay=min(2, every - 1), steps=1000).spec.schedule
    assert isinstance(delayed, Streaming) and delayed.delay == min(2, every - 1)


def test_momentum_follows_the_number_of_rounds(caplog: pytest.LogCaptureFixture) -> None:
    for steps, momentum in ((24, 0.6), (156, 0.6), (240, 0.8), (959, 0.8), (960, 0.9)):
        model, inner = _one_island()
        assert lc.DiLoCo(model, inner, every=4, steps=steps).spec.outer == Nesterov(lr=0.7, momentum=momentum)
    for steps, warmup in ((160, 20), (239, 29)):
        model, inner = _one_island()
        outer = lc.DiLoCo(model, inner, every=4, steps=steps).spec.outer
        assert outer == Pier(lr=0.7, momentum=0.8, warmup_rounds=warmup)
    model, inner = _one_island()
    assert lc.DiLoCo(model, inner, every=4, momentum=0.3).spec.outer == Nesterov(lr=0.7, momentum=0.3)
    assert not caplog.records
    model, inner = _one_island()
    assert lc.DiLoCo(model, inner, every=4).spec.outer == Nesterov(lr=0.7, momentum=0.9)
    assert "Pass steps=" in caplog.text


def test_a_part_and_a_setting_that_it_replaces_are_refused() -> None:
    model, inner = _one_island()
    for build in (
        lambda: lc.DiLoCo(model, inner, outer=SGD(lr=1.0), momentum=0.5),
        lambda: lc.SparseLoCo(model, inner, codec=Fp32(), k=32),
        lambda: lc.StreamingDiLoCo(model, inner, schedule=EveryH(), delay=1, momentum=0.6),
        lambda: lc.DiLoCoX(model, inner, codec=Fp32(), rank=4, momentum=0.6),
    ):
        with pytest.raises(ConfigError, match=r"not allowed with (momentum|k|delay|rank), .*Fix: give one of the two"):
            build()


def test_a_second_sync_on_an_optimizer_is_refused() -> None:
    """Both would merge after the same step, and the outer step would be applied twice."""
    model, inner = _one_island()
    first = lc.FedAvg(model, inner, every=2)
    with pytest.raises(ConfigError, match=r"inner = .* its steps are counted.*Fix: make a new optimizer"):
        lc.FedAvg(model, inner, every=2)
    again = toy.adamw(model)
    again.load_state_dict(inner.state_dict())
    second = lc.FedAvg(model, again, every=2)
    for step in range(2):
        _step(model, again, step)
    assert (first.step, second.round) == (0, 1)


@pytest.mark.parametrize("islands", [1, 2])
def test_a_loop_that_steps_another_optimizer_is_told_at_its_end(islands: int) -> None:
    models = [toy.Net() for _ in range(islands)]
    sync = lc.FedAvg(models, [toy.sgd(m) for m in models], every=2)
    for model in models:
        _step(model, toy.sgd(model), 0)
    with pytest.raises(SyncError, match=r"has made no step: .* nothing was merged\. Fix: give the sync"):
        sync.finish()


def test_an_island_without_a_batch_may_end() -> None:
    models = [toy.Net() for _ in range(2)]
    lc.FedAvg(models, [toy.sgd(m) for m in models], every=2).finish()
