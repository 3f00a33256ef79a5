"""H and bits chosen per round: the rule, its bounds, and that all islands and every resume decide alike."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowcomm.codec import ErrorFeedback, Graded, Int4, Int8, PowerSGD, Sign, TwoBit
from lowcomm.schedule import Adaptive, EveryH, Measured, Pace
from lowcomm.state.checkpoint import global_part, load_global
from lowcomm.sync import LocalSGD, SyncReport
from lowcomm.transport import Simulated
from lowcomm.transport.base import Altered
from lowcomm.types import ConfigError, PayloadError, Round
from tests.support import toy

SECONDS = st.floats(1e-6, 1e3)


def test_a_period_that_can_not_change_is_every_h() -> None:
    """The reduction of the docstring, bit for bit; bytes differ by the handshake and the decisions."""
    fixed = Adaptive(shortest=4, longest=4)
    assert toy.trajectory(toy.build(3, schedule=fixed))[:-1] == toy.trajectory(toy.build(3, schedule=EveryH()))[:-1]


def settled(schedule: Adaptive, every: int, measured: Measured, level_bytes: Sequence[int]) -> Pace:
    """The pace after many equal rounds, with bytes that follow the level."""
    pace = Pace(every=every)
    fixed = min(measured.exchange_s, 4 * measured.latency_s)
    for _ in range(40):
        exchange_s = fixed + (measured.exchange_s - fixed) * level_bytes[pace.level] / level_bytes[0]
        now = Measured(
            step=pace.since + pace.every,
            step_s=measured.step_s,
            exchange_s=exchange_s,
            latency_s=min(measured.latency_s, exchange_s),
            sent_bytes=level_bytes[pace.level],
        )
        before, pace = pace, schedule.next_pace(pace, every, now, level_bytes)
        assert schedule.shortest <= pace.every <= schedule.longest and pace.since == now.step
        assert before.every // 2 <= pace.every <= 2 * before.every
    return pace


@given(step_s=SECONDS, exchange_s=SECONDS, share=st.floats(0.0, 0.2), utilisation=st.floats(0.5, 0.99))
def test_the_target_is_reached_wherever_the_bounds_allow_it(
    step_s: float, exchange_s: float, share: float, utilisation: float
) -> None:
    schedule = Adaptive(utilisation=utilisation, shortest=2, longest=4096)
    sizes = [800, 400, 200]
    measured = Measured(step=0, step_s=step_s, exchange_s=exchange_s, latency_s=share * exchange_s, sent_bytes=800)
    pace = settled(schedule, 32, measured, sizes)
    fixed = min(exchange_s, 4 * share * exchange_s)
    blocked = fixed + (exchange_s - fixed) * sizes[pace.level] / sizes[0]
    reached = pace.every * step_s / (pace.every * step_s + blocked)
    if pace.every < schedule.longest:
        assert reached >= utilisation - 1e-6
    if pace.every > 32:
        assert pace.level == 2  # coarser bits come before longer rounds
    if pace.level > 0:
        finer = fixed + (exchange_s - fixed) * sizes[pace.level - 1] / sizes[0]
        assert 32 * step_s / (32 * step_s + finer) < utilisation + 1e-6  # and not before they are needed


def test_bits_then_steps_follow_a_link_that_slows_down() -> None:
    """With given speeds: 8 bits, 4, 2, then longer rounds; all replicas decide the same from any process's view."""
    seen = []
    for link in (1000.0, 0.6, 0.35, 0.15, 0.02):
        sync = toy.build(
            3,
            schedule=Adaptive(utilisation=0.9, shortest=2, longest=64, step_s=0.01, link_mbit=link),
            codec=ErrorFeedback(codec=Graded(codecs=(Int8(block=32), Int4(block=32), TwoBit(block=32)))),
        )
        for step in range(40):
            toy.train_step(sync, step)
        seen.append((sync.state.pace.level, sync.state.pace.every))
    levels, periods = [s[0] for s in seen], [s[1] for s in seen]
    assert levels[0] == 0 and levels == sorted(levels) and levels[-1] == 2
    assert periods[0] == 2 and periods[-1] > 4


class SlowLink(Simulated):
    """Every sum takes `wait_s` seconds."""

    wait_s = 0.0

    def weighted_sum(self, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Altered:
        time.sleep(self.wait_s)
        return super().weighted_sum(vectors, weights, out)


def test_a_measured_link_that_gets_slower_makes_rounds_longer() -> None:
    transport = SlowLink(2)
    sync = toy.build(2, schedule=Adaptive(utilisation=0.8, shortest=1, longest=4096), transport=transport)
    notes: list[str] = []
    sync.listeners.append(lambda report: notes.extend(report.notes))
    for step in range(20):
        toy.train_step(sync, step)
    before = sync.state.pace.every
    transport.wait_s = 0.3
    for step in range(20, 80):
        toy.train_step(sync, step)
    assert sync.state.pace.every > max(8, before)
    assert sync.state.pace.exchange_s is not None and sync.state.pace.exchange_s > 0.15
    assert len(notes) == sync.round and all("H " in n and "level 0" in n for n in notes)  # every decision is logged


def test_a_resumed_run_keeps_what_was_decided() -> None:
    def build() -> LocalSGD:
        schedule = Adaptive(utilisation=0.9, shortest=2, longest=64, step_s=0.01, link_mbit=0.15)
        return toy.build(2, schedule=schedule, codec=ErrorFeedback(codec=Graded()))

    sync, again = build(), build()
    for step in range(9):
        toy.train_step(sync, step)
    load_global(again.state, global_part(sync.state))
    assert again.state.pace == sync.state.pace != Pace(every=4)


def test_rank_and_bits_of_a_low_rank_codec_are_in_the_log() -> None:
    reports: list[SyncReport] = []
    sync = toy.build(2, codec=ErrorFeedback(codec=PowerSGD(rank=2, energy=0.9)))
    sync.listeners.append(reports.append)
    for step in range(4):
        toy.train_step(sync, step)
    assert reports[0].notes == ("round 0: ranks 4 in all, 16 bits",)


def test_a_payload_says_which_of_the_codecs_made_it() -> None:
    graded, like = Graded(), {"w": torch.arange(600.0)}
    assert graded.level_bytes(like) == sorted(graded.level_bytes(like), reverse=True)
    for level, codec in enumerate(graded.codecs):
        now = Round(index=3, step=12, fragments=(0,), seed=1, level=level)
        payload, _ = graded.encode(like, {}, now)
        assert torch.equal(graded.decode(payload, like)["w"], codec.decode(payload, like)["w"])
        other = Round(index=3, step=12, fragments=(0,), seed=1, level=(level + 1) % 3)
        with pytest.raises(PayloadError):
            graded.decode(payload, like, other)
    with pytest.raises(PayloadError, match="level 3, there are 3"):
        graded.at(Round(index=0, step=4, fragments=(0,), seed=0, level=3))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (Adaptive(utilisation=1.0), "utilisation = 1.0 "),
        (Adaptive(utilisation=0.0), "utilisation = 0.0 "),
        (Adaptive(shortest=0), "shortest = 0 "),
        (Adaptive(shortest=64), "shortest = 64 "),
        (Adaptive(longest=16), "longest = 16 "),
        (Adaptive(step_s=0.0), "step_s = 0.0 "),
        (Adaptive(link_mbit=-1.0), "link_mbit = -1.0 "),
        (Adaptive(round_trip_ms=float("nan")), "round_trip_ms = nan "),
    ],
)
def test_out_of_range(bad: Adaptive, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"sync\.schedule\.{says}.*Fix: "):
        bad.check(32, 1000)


@pytest.mark.parametrize("codecs", [(), (Int8(), Int4(exchange="gather")), (Int8(), Sign(vote=True))])
def test_codecs_that_can_not_stand_for_each_other(codecs: tuple[Int8, ...]) -> None:
    with pytest.raises(ConfigError, match=r"codec\.codecs = .*Fix: "):
        Graded(codecs=codecs).check()
