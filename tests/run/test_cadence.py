"""Checkpoints by the clock, and which of them are kept and gone on from after a failure."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowcomm import checkpoint, trainer
from lowcomm.checkpoint_pruning import prune
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.run.cadence import Cadence
from lowcomm.schedule import EveryStep, Schedule, Streaming
from lowcomm.trainer import train
from lowcomm.transport import Simulated
from lowcomm.transport.base import Altered
from lowcomm.types import SyncError, TransportError, UnusableError
from tests.support import runs

PART: dict[str, checkpoint.Part] = {"island": ({"x": torch.ones(2)}, {}), "global": ({"y": torch.ones(2)}, {})}


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Alone(Simulated):
    """One island of several whose peers answer what a test says; counts what is asked and counted."""

    def __init__(self, others: Sequence[Tensor] = ()) -> None:
        super().__init__(1)
        self.others, self.asked = others, 0

    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        self.asked += 1
        self.count(16, 16)
        return torch.stack([*rows, *self.others])


@pytest.mark.parametrize("round_s", [0.5, 7.0, 130.0, 290.0, 301.0])
def test_never_longer_than_asked_for_and_agreed_on_rarely(round_s: float) -> None:
    clock, transport = Clock(), Alone()
    cadence = Cadence(300.0, transport, clock)
    saved_s = [0.0]
    rounds = int(3000 / round_s)
    for _ in range(rounds):
        clock.now_s += round_s
        cadence.synced(lambda: None)
        if cadence.due:
            saved_s.append(clock.now_s)
            cadence.saved()
    gaps = [later - earlier for earlier, later in itertools.pairwise(saved_s)]
    assert max(gaps) <= max(300.0, round_s)
    assert min(gaps) >= min(150.0, round_s), "it saves far too often"
    assert transport.asked <= min(rounds, 12 * len(saved_s) + 10)
    assert transport.sent_bytes == [0], "how often they agree depends on the clock: it is not counted"


def test_the_slowest_islands_clock_decides_for_all() -> None:
    clock = Clock()
    cadence = Cadence(300.0, Alone([torch.tensor([299.0, 2.0], dtype=torch.float64)]), clock)
    clock.now_s = 1.0
    cadence.synced(lambda: None)
    assert cadence.due


def test_islands_that_can_not_be_asked_are_asked_at_the_next_sync() -> None:
    class Broken(Alone):
        def gather(self, rows: Sequence[Tensor]) -> Tensor:
            raise TransportError("the gather failed")

    cadence = Cadence(300.0, Broken(), Clock())
    cadence.synced(lambda: None)
    assert not cadence.due


def test_off() -> None:
    clock, transport = Clock(), Alone()
    cadence = Cadence(None, transport, clock)
    clock.now_s = 1e6
    cadence.synced(lambda: None)
    assert not cadence.due and not cadence.part_is_due() and transport.asked == 0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def each_look_takes_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock takes a second, so that saves come after numbers of looks, not of seconds."""
    clock = Clock()

    def look() -> float:
        clock.now_s += 1.0
        return clock.now_s

    monkeypatch.setattr(trainer, "Cadence", lambda every_s, transport: Cadence(every_s, transport, look))


@pytest.mark.parametrize(
    ("schedule", "every", "name"),
    [
        (None, 4, r"\d{6}$"),
        (None, 12, r"000000-part0-\d$"),
        (EveryStep(), 4, r"\d{6}$"),
        (EveryStep(), 12, r"000000-part0-\d$"),
        (Streaming(fragments=2, delay=1), 4, r"\d{6}$"),
    ],
)
@pytest.mark.usefixtures("each_look_takes_a_second")
def test_a_run_saves_by_the_clock_and_goes_on_exactly(
    schedule: Schedule | None, every: int, name: str, corpus: Path, tmp_path: Path
) -> None:
    """After syncs, in averaged gradients and inside a round; what is lost since the last of them is trained again."""
    sync = SyncConfig(every=every) if schedule is None else SyncConfig(every=every, schedule=schedule)
    saves = CheckpointConfig(every_s=4.0, keep=50, export=False)
    config = runs.small(corpus, tmp_path / "whole", sync=sync, checkpoint=saves)
    assert train(config) == 0
    root = tmp_path / "whole" / "checkpoints"
    names = checkpoint.names(root)
    assert names
    assert any(re.match(name, n) for n in names), names
    expected = runs.summary(tmp_path / "whole")
    (tmp_path / "whole" / "summary.json").unlink()  # as after a kill -9
    assert train(dataclasses.replace(config, resume="auto")) == 0
    found = runs.summary(tmp_path / "whole")
    assert found["weights_sha256"] == expected["weights_sha256"]


def save(root: Path, name: str, failure: str | None = None, islands: int = 2, session: str = "s") -> None:
    for island in range(islands):
        checkpoint.save(root, name, island, PART, session, failure)


def test_what_a_failure_saved_pushes_no_healthy_checkpoint_out(tmp_path: Path) -> None:
    for name in ("000001", "000002"):
        save(tmp_path, name)
    for name in ("000002-stop0", "000002-stop1", "000003-stop2"):
        save(tmp_path, name, "unusable", session=name)
        prune(tmp_path, 2)
        assert checkpoint.names(tmp_path) == ["000001", "000002", name]
    save(tmp_path, "000004")
    prune(tmp_path, 2)
    assert checkpoint.names(tmp_path) == ["000002", "000004"]


def test_where_one_island_was_told_to_stop_the_failure_of_the_others_is_the_stop(tmp_path: Path) -> None:
    save(tmp_path, "000001")
    checkpoint.save(tmp_path, "000001-stop0", 0, PART, "s")
    checkpoint.save(tmp_path, "000001-stop0", 1, PART, "s", "exchange")
    prune(tmp_path, 1)
    assert checkpoint.names(tmp_path) == ["000001-stop0"]


def test_names_are_in_the_order_of_their_saving(tmp_path: Path) -> None:
    names = ["000001", "000001-part0-1", "000001-part0-2", "000001-stop0", "000001-part1-1", "000001-stop1", "000002"]
    for name in reversed(names):
        save(tmp_path, name, islands=1)
    assert checkpoint.names(tmp_path) == names
    assert checkpoint.highest_stop(tmp_path) == 1


def failing(config: RunConfig, error: SyncError, monkeypatch: pytest.MonkeyPatch, sums: int) -> None:
    """Run until the exchange after `sums` of them raises `error`."""
    before, calls = Simulated.weighted_sum, [0]

    def fail(self: Simulated, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Altered:
        calls[0] += 1
        if calls[0] > sums:
            raise error
        return before(self, vectors, weights, out)

    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(Simulated, "weighted_sum", fail)
        train(config)


@pytest.mark.parametrize(
    ("error", "resumed_from"), [(TransportError("the line broke"), 12), (UnusableError("no island is usable"), 8)]
)
def test_resume_prefers_a_healthy_checkpoint_to_a_failure_that_would_come_again(
    error: SyncError, resumed_from: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = runs.small(corpus, tmp_path / "run")
    assert train(dataclasses.replace(config, run_dir=tmp_path / "whole")) == 0
    failing(config, error, monkeypatch, 2)
    assert "000002-stop0" in checkpoint.names(tmp_path / "run" / "checkpoints")
    assert train(dataclasses.replace(config, resume=True)) == 0
    said = [m["note"] or "" for m in runs.metrics(tmp_path / "run")]
    (note,) = [n for n in said if n.startswith("resumed from")]
    assert f"at inner step {resumed_from}" in note
    assert ("skipped as the failure that saved it would come again: 000002-stop0" in note) == (resumed_from == 8)
    sha256 = [runs.summary(tmp_path / name)["weights_sha256"] for name in ("run", "whole")]
    assert sha256[0] == sha256[1]


def test_a_failure_is_gone_on_from_where_nothing_else_is_there(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = runs.small(corpus, tmp_path / "run", checkpoint=CheckpointConfig(export=False))
    failing(config, UnusableError("no island is usable"), monkeypatch, 0)
    assert train(dataclasses.replace(config, resume="auto")) == 0


def test_weights_that_are_no_numbers_are_not_saved(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Global weights that became infinite in a sync: neither a round's checkpoint nor a stop's holds them."""

    def blow_up(self: Simulated, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Altered:
        out.fill_(float("inf"))
        return [{} for _ in self.local]

    config = runs.small(corpus, tmp_path / "run")
    with monkeypatch.context() as patch:
        assert (
            train(dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, stop_at_step=5))) == 3
        )
        patch.setattr(Simulated, "weighted_sum", blow_up)
        patch.setattr("lowcomm.exchange.lockstep.check_mean", lambda *_: None)  # which would not commit it
        with pytest.raises(Exception, match=r"nan|inf|usable|finite"):
            train(dataclasses.replace(config, resume=True))
    assert checkpoint.names(tmp_path / "run" / "checkpoints") == ["000001", "000001-stop0"]
