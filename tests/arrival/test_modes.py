"""Modes that never wait, over a simulated log and real processes: reductions, marks, own pending work, resume."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lowcomm.aggregate import Mean
from lowcomm.arrival import (
    AEdit,
    Anarchic,
    AnarchicSilos,
    ArrivalRule,
    BackupWorkers,
    Decoupled,
    FedBuff,
    FedCompass,
    Timed,
    TokenBatch,
    TurnStale,
)
from lowcomm.codec import Codec, ErrorFeedback, Fp32, Int4
from lowcomm.exchange.buffered import Buffered
from lowcomm.exchange.entry import Entry, Kind
from lowcomm.exchange.log import DirectoryLog, Log, MemoryLog
from lowcomm.outer import SGD, HeLoCo, Nesterov, Outer
from lowcomm.state.checkpoint import global_part, island_part, load_global, load_island
from lowcomm.sync import LocalSGD
from lowcomm.types import ConfigError, SyncError
from tests.methods import ARRIVALS, name
from tests.support import buffered_worker, toy

UNEQUAL = (1.0, 0.5, 0.3)
H = toy.EVERY


@pytest.fixture(autouse=True)
def whole_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs in memory forget nothing, so that they can be folded again."""
    monkeypatch.setattr(MemoryLog, "drop", lambda _self, _before: None)


def build(
    islands: int, exchange: Buffered | None, by: Any = "uniform", outer: Outer | None = None, codec: Codec | None = None
) -> LocalSGD:
    models = [toy.Net() for _ in range(islands)]
    return LocalSGD(
        models, [toy.adamw(m) for m in models], every=H, outer=outer or Nesterov(lr=0.7, momentum=0.6),
        codec=codec or Fp32(), exchange=exchange, aggregator=Mean(by=by if exchange is None else "uniform"),
    )  # fmt: skip


def train(sync: LocalSGD, ticks: Sequence[int], finish: bool = True) -> list[str]:
    """The lines that reports give, without the round."""
    return [note.partition(": ")[2] for note in buffered_worker.train(sync, ticks, finish)]


def flat(sync: LocalSGD) -> torch.Tensor:
    return toy.flat(list(sync.weights().values()))


def digests(sync: LocalSGD) -> list[str]:
    return [anchor.digest().hex() for anchor in sync.state.anchors[0]]


def after(islands: int, rule: ArrivalRule, ticks: int = 14, **fields: Any) -> torch.Tensor:
    sync = build(islands, Buffered(rule=rule, **fields))
    train(sync, range(ticks))
    return flat(sync)


@pytest.mark.parametrize(
    ("rule", "by"),
    [
        (Timed(every_s=H), "uniform"),
        (Timed(every_s=H, weights="identical"), "uniform"),
        (Decoupled(quorum=1.0, slack=0.5), "uniform"),
        (FedBuff(size=3, weights="unbiased"), "uniform"),
        (Anarchic(size=3, nominal_steps=H), "uniform"),
        (AnarchicSilos(size=3, nominal_steps=H), "uniform"),
        (BackupWorkers(), "uniform"),
        (FedCompass(least_steps=H, most_steps=H), "uniform"),
        (TokenBatch(tokens=3 * 5 * H), "tokens"),  # 4, 5 and 6 tokens per step
    ],
    ids=name,
)
def test_equal_speeds_are_the_synchronous_run(rule: ArrivalRule, by: str) -> None:
    if isinstance(rule, Decoupled):  # it weighs by tokens times rate: the squares of 4, 5 and 6
        assert _versions(3, rule, 8) == [3, 3]
        return
    lockstep = build(3, None, by)
    train(lockstep, range(12))
    torch.testing.assert_close(after(3, rule, 12), flat(lockstep), rtol=1e-5, atol=1e-6)


def _versions(islands: int, rule: ArrivalRule, ticks: int, **fields: Any) -> list[int]:
    """How many contributions each version holds."""
    sync, sizes = build(islands, Buffered(rule=rule, **fields)), list[int]()
    fold = buffered_worker.follower(sync).folds[0]
    step = type(fold)._step

    def counted(self: Any, position: int) -> None:
        if self is fold:
            sizes.append(self.count)
        step(self, position)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(fold), "_step", counted)
        train(sync, range(ticks))
    return sizes


def test_a_rule_of_fedbuff_is_what_no_rule_is() -> None:
    plain = build(3, Buffered(size=2, staleness="constant", speeds=UNEQUAL))
    train(plain, range(40))
    rules = (
        FedBuff(size=2, staleness="constant"),
        Anarchic(size=2, nominal_steps=H),
    )  # 40 ticks are whole rounds of each
    for rule in rules:
        assert torch.equal(after(3, rule, 40, speeds=UNEQUAL), flat(plain))


def test_a_turn_of_nothing_changes_nothing_and_another_does() -> None:
    def turned(turn: TurnStale | None) -> torch.Tensor:
        return after(3, FedBuff(size=2, turn=turn), 30, speeds=UNEQUAL)

    assert torch.equal(turned(TurnStale(c_ok=0.0, k_s=0.0)), turned(None))
    assert not torch.equal(turned(TurnStale()), turned(None))


def test_what_all_contribute_to_leaves_nothing_pending() -> None:
    rule = FedBuff(size=3)
    assert torch.equal(after(3, rule, goes_on="own"), after(3, rule))
    assert not torch.equal(after(3, rule, 30, goes_on="own", speeds=UNEQUAL), after(3, rule, 30, speeds=UNEQUAL))


@pytest.mark.parametrize("rule", ARRIVALS, ids=name)
def test_an_island_trains_on_from_what_it_has_contributed(rule: ArrivalRule) -> None:
    """anchor = version of the log - own contributions that wait: the versions are those of the log folded by itself."""
    sync = build(3, Buffered(rule=rule, goes_on="own", speeds=UNEQUAL))
    train(sync, range(17), finish=False)
    mine = buffered_worker.follower(sync)
    for i, view in enumerate(mine.views):
        fresh = buffered_worker.follower(build(3, Buffered(rule=rule, goes_on="own", speeds=UNEQUAL))).folds[0]
        for data in list(mine.log.read(0))[: mine.folds[i].position]:
            fresh.take(data, sync.state.run_id)
        whole = view.anchor.weights if view.whole is None else view.whole
        assert torch.equal(whole, fresh.anchor.weights)
        waits = fresh.room.sequences(i)
        assert set(view.pending) == waits
        expected = whole.clone()
        for delta in view.pending.values():
            expected -= delta
        assert torch.equal(view.anchor.weights, expected)
    train(sync, range(17, 22))
    assert len(set(digests(sync))) == 1


def test_a_timed_version_takes_what_has_come_by_then() -> None:
    """dt = 6 ticks, H = 4: contributions of ticks 4, 8 (two islands) and so on; marks as if somebody looked always."""
    notes = train(build(2, Buffered(rule=Timed(every_s=6.0), speeds=(1.0, 0.5))), range(16), finish=False)
    assert notes == [
        "log 0: island 0, contribution 0, base version 0, staleness 0",
        "log 1: island 0, full, version 0",
        "log 2: island 0, contribution 1, base version 0, staleness 1",
        "log 3: island 1, contribution 0, base version 0, staleness 1",
        "log 4: island 0, contribution 2, base version 1, staleness 0",
        "log 5: island 0, full, version 1",
        "log 6: island 0, contribution 3, base version 2, staleness 0",
        "log 7: island 1, contribution 1, base version 1, staleness 1",
    ]


def test_backup_workers_wait_for_those_who_are_worth_it() -> None:
    """The first version is of all; then the slow island's work enters when it comes, and all islands choose alike."""
    speeds = (1.0, 1.0, 0.25)
    sizes = _versions(3, BackupWorkers(least=0.3, curvature=0.0), 30, speeds=speeds)
    # no time is known at first: all three, of whom two have contributed four times; the last ones are of the end
    assert sizes[:4] == [9, 2, 2, 2]
    assert _versions(3, BackupWorkers(least=1.0, curvature=0.0), 30, speeds=speeds) == [9, 9]
    noisy = _versions(3, BackupWorkers(least=0.3, curvature=2.0), 30, speeds=speeds)
    assert noisy == [9, 9], "with nothing to gain by a step, all are waited for"


def test_seconds_of_a_simulation_are_those_of_its_ticks() -> None:
    rule = Timed(every_s=6.0)
    slow = dataclasses.replace(rule, every_s=3.0)
    assert torch.equal(after(2, rule, 16, speeds=(1.0, 0.5)), after(2, slow, 16, speeds=(1.0, 0.5), tick_s=0.5))


def test_a_token_batch_lets_all_contribute_at_once() -> None:
    """Once rates are known, islands at 1, 1/2 and 1/4 contribute together, with unequal steps."""
    sync = build(3, Buffered(rule=TokenBatch(tokens=88), speeds=(1.0, 0.5, 0.25)))
    train(sync, range(200), finish=False)
    mine = buffered_worker.follower(sync)
    found = [Entry.unpack(e) for e in mine.log.read(0)]
    late = [[e.steps for e in found if e.island == k][-4:] for k in range(3)]
    assert all(max(steps) - min(steps) <= 1 for steps in late)
    means = [sum(steps) / len(steps) for steps in late]
    assert means[0] / means[1] == pytest.approx(2, abs=0.5) and means[1] / means[2] == pytest.approx(2, abs=0.7)


def test_compass_lets_islands_of_unequal_speed_arrive_together() -> None:
    """At 1, 1/2 and 1/4 of the speed: after the first round of all, 16, 8 and 4 steps, and a version of all three."""
    sync = build(3, Buffered(rule=FedCompass(least_steps=2, most_steps=16), speeds=(1.0, 0.5, 0.25)))
    train(sync, range(112), finish=False)
    mine = buffered_worker.follower(sync)
    found = [Entry.unpack(e) for e in mine.log.read(0)]
    late = [[e.steps for e in found if e.island == k][-3:] for k in range(3)]
    assert late[0][0] > late[1][0] > late[2][0]
    assert all(max(steps) - min(steps) <= 2 for steps in late)
    given = mine.folds[0].room.memory["steps"]
    assert all(abs(given[str(k)] - late[k][-1]) <= 2 for k in range(3)), "what they are given is what they take"


def test_across_silos_the_latest_of_every_island_counts() -> None:
    """With SGD of rate 1 and a version per contribution: w - sum of the latest Delta of each, over K."""
    sync = build(3, Buffered(rule=AnarchicSilos(size=1, nominal_steps=H), speeds=UNEQUAL), outer=SGD(lr=1.0))
    start = flat(sync).double()
    train(sync, range(28), finish=False)
    mine = buffered_worker.follower(sync)
    fold, latest, expected = mine.folds[0], dict[int, torch.Tensor](), start
    for data in list(mine.log.read(0))[: fold.position]:
        entry = Entry.unpack(data)
        latest[entry.island] = toy.flat([v.double() for v in fold._decode(entry)])
        expected = expected - torch.stack(list(latest.values())).sum(dim=0) / 3
    torch.testing.assert_close(flat(sync).double(), expected, rtol=1e-5, atol=1e-5)


def test_marks_that_say_nothing_new_change_nothing() -> None:
    sync = build(2, Buffered(rule=Timed(every_s=6.0)))
    train(sync, range(8), finish=False)
    mine, run = buffered_worker.follower(sync), sync.state.run_id
    fold = mine.folds[0]
    before, version = fold.anchor.digest(), fold.anchor.version
    for base in (version, version - 1, version + 1):
        mark = Entry(kind=Kind.FULL, island=1, run=run, base_version=base)
        if base != version or not fold.count:
            fold.take(mark.pack(), run)
        fold.take(dataclasses.replace(mark, run=run ^ 1).pack(), run ^ 1 ^ run)
    assert (fold.anchor.digest(), fold.anchor.version) == (before, version)


def test_a_log_that_can_not_be_written_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The island had looked at the log, and its next Delta is still taken from where it began."""
    exchange = Buffered(rule=Timed(every_s=6.0), speeds=(1.0, 0.5))
    whole, broken = build(2, exchange), build(2, exchange)
    train(whole, range(6), finish=False)
    train(broken, range(6), finish=False)
    append = MemoryLog.append

    def full(self: Log, entry: bytes) -> int:
        if Entry.unpack(entry).kind == Kind.CONTRIBUTION:
            raise SyncError("disk full")
        return append(self, entry)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(MemoryLog, "append", full)
        weights = [a.weights.clone() for a in broken.state.anchors[0]]
        with pytest.raises(SyncError):
            train(broken, [6, 7], finish=False)
        assert all(torch.equal(w, a.weights) for w, a in zip(weights, broken.state.anchors[0], strict=True))
    train(broken, range(8, 16))
    assert len(set(digests(broken))) == 1


@pytest.mark.parametrize(
    ("rule", "stop"),
    [
        (Timed(every_s=5.0), 7),
        (Timed(every_s=5.0), 19),
        (AnarchicSilos(), 13),
        (BackupWorkers(least=0.3), 17),
        (FedCompass(least_steps=2, most_steps=8), 17),
        (AEdit(size=2, warm_up=2), 19),
        (TokenBatch(tokens=40), 21),
    ],
    ids=name,
)
def test_a_resumed_simulation_is_an_unbroken_one(rule: ArrivalRule, stop: int) -> None:
    def new() -> LocalSGD:
        exchange = Buffered(rule=rule, goes_on="own", speeds=UNEQUAL)
        return build(3, exchange, codec=ErrorFeedback(codec=Int4()))

    whole = new()
    expected = train(whole, range(30))
    first = new()
    notes = train(first, range(stop), finish=False)
    saved = global_part(first.state), [island_part(first.state, i) for i in range(3)]
    copied = [({k: t.clone() for k, t in tensors.items()}, values) for tensors, values in (saved[0], *saved[1])]
    second = new()
    load_global(second.state, copied[0])
    for i, part in enumerate(copied[1:]):
        load_island(second.state, i, part)
    notes += train(second, range(stop, 30))
    assert digests(second) == digests(whole)
    assert notes == expected


def test_processes_with_clocks_of_their_own_hold_the_bits_of_the_log(tmp_path: Path) -> None:
    """Whatever their clocks say, the marks in the log are what counts."""
    log = tmp_path / "log"
    seen = buffered_worker.run(2, log, "timed", tmp_path)
    assert len(seen) == 2 and not [s["error"] for s in seen.values() if "error" in s]
    assert seen[0]["digest"] == seen[1]["digest"]
    entries = list(DirectoryLog(log, 1 << 20).read(0))
    kinds = [Entry.unpack(e).kind for e in entries]
    assert Kind.FULL in kinds and all(Entry.unpack(e).took_s > 0 for e in entries if Entry.unpack(e).steps)
    like = build(2, buffered_worker.exchange(None, "timed"), codec=buffered_worker.CODECS["timed"])
    fold = buffered_worker.follower(like).folds[0]
    for data in entries:
        fold.take(data, seen[0]["run"])
    assert fold.anchor.digest().hex() == seen[0]["digest"]


def test_what_does_not_go_together_is_refused() -> None:
    def refused(match: str, exchange: Buffered, outer: Outer | None = None) -> None:
        with pytest.raises(ConfigError, match=match) as caught:
            build(2, exchange, outer=outer)
        assert "Fix: " in str(caught.value) and "\n" not in str(caught.value)

    refused(r"exchange\.size = 3", Buffered(rule=FedBuff(), size=3))
    refused(r"exchange\.size = 4", Buffered(rule=FedBuff(), staleness="constant"))
    refused(r"exchange\.rule\.tokens = 0", Buffered(rule=TokenBatch(tokens=0)))
    refused(r"exchange\.tick_s = 0", Buffered(tick_s=0.0))
    refused(r"exchange\.goes_on", Buffered(goes_on="there"))  # pyright: ignore[reportArgumentType]
    turning = Buffered(rule=FedBuff(turn=TurnStale()))
    for outer in (SGD(lr=1.0), Nesterov(momentum=0.0)):
        refused(r"outer = .* it has none", turning, outer)
    build(2, turning, outer=HeLoCo())
