"""An exchange that is not there when it is due: told with its cause, waited for or stopped at, no bit changed."""

from __future__ import annotations

import dataclasses
import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowcomm.cli import main
from lowcomm.config import SyncConfig
from lowcomm.config_check import check
from lowcomm.report.load import load_run
from lowcomm.report.progress import Progress
from lowcomm.report.series import warnings_of
from lowcomm.schedule import OneStepDelay, Streaming
from lowcomm.state.cohort import Cohort
from lowcomm.state.deadlines import Late, explain
from lowcomm.state.digest import sha256_weights
from lowcomm.state.outgoing import Pending
from lowcomm.sync import LocalSGD
from lowcomm.types import ConfigError, DivergenceError, SyncError
from tests.support import runs, toy
from tests.support.threads import Hub, Threaded, run_threads
from tests.transport.test_collective import run_job

STEPS = 11  # exchanges start after steps 4 and 8 and are due one step later
SCHEDULE = Streaming(fragments=1, delay=1)


def pending(arrivals_s: list[float], roll_s: float, transfer_s: float) -> Pending:
    cohort = Cohort(weights=[0.5, 0.5], tokens=[1.0, 1.0], dropped={}, norms=[1.0, 1.0], arrivals_s=arrivals_s)
    return Pending(
        began=10.0, called=10.0 + roll_s, exchange_s=roll_s + transfer_s, sent_bytes=[125_000], cohort=cohort
    )


@pytest.mark.parametrize(
    ("arrivals_s", "roll_s", "transfer_s", "waited_s", "cause", "says"),
    [
        ([1.0, 4.0], 3.01, 0.1, 3.0, "slow peer", "island 1 came to the roll call 3.000 s after this one"),
        ([1.0, 1.1], 0.12, 2.0, 1.5, "slow link", "125000 bytes sent in 2.000 s, 0.5 Mbit/s; .* 0.100 s after"),
        ([4.0, 1.0], 0.01, 2.0, 1.0, "slow link", "came 0.000 s after"),  # itself the last: not its peers' doing
        ([1.0, 3.0], 2.0, 2.5, 4.4, "slow link", "125000 bytes"),  # the larger part decides
        ([1.0, 1.0], 1.0, 0.01, 0.9, "slow peer", "all had come, but the roll call took 0.980 s"),
    ],
)
def test_cause(
    arrivals_s: list[float], roll_s: float, transfer_s: float, waited_s: float, cause: str, says: str
) -> None:
    found, detail = explain(pending(arrivals_s, roll_s, transfer_s), 0, waited_s)
    assert found == cause
    assert re.search(says, detail), detail


def test_unknown_choice_is_refused_before_anything_starts(tmp_path: Path) -> None:
    config = dataclasses.replace(runs.small(tmp_path, None), sync=SyncConfig(every=4, on_late="panic"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"sync\.on_late = 'panic' is not allowed: .*wait, stop.* Fix: "):
        check(config, 2)
    with pytest.raises(ConfigError, match="on_late = 'panic'"):
        toy.build(2, on_late="panic")  # pyright: ignore[reportArgumentType]
    for tolerance_s in (-0.1, float("inf"), float("nan")):
        config = dataclasses.replace(runs.small(tmp_path, None), sync=SyncConfig(every=4, late_tolerance_s=tolerance_s))
        with pytest.raises(ConfigError, match=r"sync\.late_tolerance_s = \S+ is not allowed: .* from 0\. Fix: 0\.5"):
            check(config, 2)
        with pytest.raises(ConfigError, match="late_tolerance_s = "):
            toy.build(2, late_tolerance_s=tolerance_s)


def island(
    me: int, hub: Hub, wire_s: Callable[[int], float] = lambda _: 0.0, on_late: Any = "wait", tolerance_s: float = 0.5
) -> tuple[LocalSGD, list[Late]]:
    wire = Threaded(hub, me, wire_s)
    sync = toy.build(1, schedule=SCHEDULE, transport=wire, on_late=on_late, late_tolerance_s=tolerance_s)
    assert sync.state.worker.beside
    told: list[Late] = []
    sync.deadlines.listeners.append(told.append)
    return sync, told


def expected() -> str:
    sync = toy.build(2, schedule=SCHEDULE)
    for step in range(STEPS):
        toy.train_step(sync, step)
    sync.finish()
    return sha256_weights(sync.weights())


@pytest.mark.parametrize("slow", ["nothing", "peer", "link"])
def test_lateness_is_told_by_cause_and_changes_no_bit(slow: str) -> None:
    hub, told, ends, due = Hub(2), [list[Late]() for _ in range(2)], ["", ""], threading.Event()

    def body(me: int) -> None:
        sync, told[me] = island(me, hub, lambda n: 0.4 if slow == "link" and n == 1 else 0.0)
        for step in range(STEPS):
            if me == 1 and step == 6 and slow == "peer":
                due.wait(60)  # until the other needs this one, however slow it was itself
                time.sleep(0.4)
            if me == 0 and step == 8:
                due.set()
            if step in (4, 8) and not (me == 0 and step == 8 and slow == "peer") and not (step == 8 and slow == "link"):
                sync.wait()  # where nothing is meant to be late, nothing is, however busy this machine is
            toy.train_step(sync, step)
        sync.finish()
        ends[me] = sha256_weights(sync.weights())
        assert sync.deadlines.misses == len(told[me])
        assert sync.deadlines.waited_s == pytest.approx(sum(late.waited_s for late in told[me]))
        assert sync.state.blocked_s >= sync.deadlines.waited_s

    run_threads(2, body)
    assert ends == [expected()] * 2
    causes = [[late.cause for late in each] for each in told]
    assert causes == {"nothing": [[], []], "peer": [["slow peer"], []], "link": [["slow link"]] * 2}[slow]
    if slow != "nothing":
        (late,) = told[0]
        assert (late.round.index, late.fragment) == (1, 0)
        assert late.waited_s > 0.25
        assert ("island 1 came" in late.detail) is (slow == "peer")


def test_stop_ends_all_islands_at_the_same_place() -> None:
    """Only island 0 has waited, but both end in the next exchange, with nothing of it committed, and can go on."""
    hub, errors, rounds = Hub(2), ["", ""], [0, 0]

    def body(me: int) -> None:
        sync, told = island(me, hub, on_late="stop", tolerance_s=0.1)
        for step in range(STEPS):
            if me == 1 and step == 3:
                time.sleep(0.4)
            if step == 8 or (me == 1 and step == 4):
                sync.wait()
            try:
                toy.train_step(sync, step)
            except SyncError as error:
                assert step == 8 and sync.pending == (0,)
                errors[me], rounds[me] = str(error), sync.round
        sync.finish()
        assert [late.cause for late in told] == (["slow peer"] if me == 0 else [])
        assert sync.round > 1

    run_threads(2, body)
    assert rounds == [1, 1]
    for text in errors:
        assert (
            "islands [0] waited for an exchange past its deadline for longer than sync.late_tolerance_s = 0.1" in text
        )
        assert "and sync.on_late = 'stop'" in text
        assert "Fix: " in text and "\n" not in text


def test_a_wait_within_the_tolerance_is_told_and_ends_no_run() -> None:
    """Every exchange is late by the 50 ms that the wire takes, and the run goes on to the same weights."""
    hub, told, ends = Hub(2), [list[Late]() for _ in range(2)], ["", ""]

    def body(me: int) -> None:
        sync, told[me] = island(me, hub, lambda _: 0.05, on_late="stop", tolerance_s=60.0)
        for step in range(STEPS):
            toy.train_step(sync, step)
        sync.finish()
        ends[me] = sha256_weights(sync.weights())

    run_threads(2, body)
    assert ends == [expected()] * 2
    assert all(len(late) >= 2 and all(one.waited_s > 0 for one in late) for late in told)


def test_islands_must_agree_on_what_happens() -> None:
    hub = Hub(2)

    def body(me: int) -> None:
        with pytest.raises(DivergenceError, match=r"disagree on on_late: .*'stop'"):
            island(me, hub, on_late=("wait", "stop")[me])

    run_threads(2, body)


def test_dead_peer() -> None:
    """Island 1 leaves while island 0's exchange is in flight."""
    hub, told, begun = Hub(2), list[Late](), threading.Event()

    def body(me: int) -> None:
        sync, found = island(me, hub)
        if me == 0:
            told.clear()
            begun.set()
        for step in range(4):
            if me == 1 and step == 3:
                begun.wait(60)  # or island 0 might still be in the handshake
                sync.transport.close()
                return
            toy.train_step(sync, step)
        with pytest.raises(SyncError, match="a peer has left"):
            toy.train_step(sync, 4)
        told.extend(found)
        assert sync.pending == (0,)

    run_threads(2, body)
    assert [late.cause for late in told] == ["dead peer"]
    assert "a peer has left" in told[0].detail


def test_nothing_is_silent_without_a_listener(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub(2)

    def body(me: int) -> None:
        sync, _ = island(me, hub, lambda _: 0.2)
        sync.deadlines.listeners.clear()
        for step in range(5):
            toy.train_step(sync, step)
        assert sync.deadlines.misses == 1

    with caplog.at_level(logging.WARNING, logger="lowcomm"):
        run_threads(2, body)
    assert sum("fragment 0 of round 0 missed its deadline" in r.message for r in caplog.records) == 2


def test_waiting_before_it_is_due_is_no_miss() -> None:
    """`finish` right after a launch waits for it, as does a schedule that waits for every sync."""
    for schedule, steps in ((SCHEDULE, 4), (OneStepDelay(), 4), (Streaming(fragments=1), 8)):
        hub = Hub(2)

        def body(me: int, schedule: Any = schedule, steps: int = steps, hub: Hub = hub) -> None:
            sync = toy.build(1, schedule=schedule, transport=Threaded(hub, me, lambda _: 0.05))
            for step in range(steps):
                toy.train_step(sync, step)
            sync.finish()
            assert sync.round > 0 and sync.deadlines.misses == 0

        run_threads(2, body)


def test_peak_rate_is_that_of_exchanges_beside_training() -> None:
    hub, peaks = Hub(2), [0.0, 0.0]

    def body(me: int) -> None:
        sync, _ = island(me, hub)
        for step in range(5):
            if step == 4:
                sync.wait()
                time.sleep(0.2)
            toy.train_step(sync, step)
        peaks[me] = sync.deadlines.peak_bytes_per_s or 0.0

    run_threads(2, body)
    size_bytes = sum(f.size for f in toy.build(2, schedule=SCHEDULE).state.fragments) * 4
    assert all(0 < peak < (size_bytes + 100) / 0.2 for peak in peaks), peaks
    waiting = toy.build(2, schedule=SCHEDULE)
    waiting.state.worker.beside = False
    for step in range(6):
        toy.train_step(waiting, step)
    assert waiting.round == 1 and waiting.deadlines.peak_bytes_per_s is None


def test_warnings_are_rate_limited_by_kind(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    progress, now = Progress(name="x", steps=1, enabled=False), [100.0]
    monkeypatch.setattr("lowcomm.report.progress.time.monotonic", lambda: now[0])
    for text in ("a", "b", "c"):
        progress.warn("slow link", text)
    progress.warn("slow peer", "d")
    now[0] += 31
    progress.warn("slow link", "e")
    assert capsys.readouterr().out.splitlines() == ["a", "d", "e (2 more like it since the last such line)"]


def test_stopped_process_is_named_over_gloo(tmp_path: Path) -> None:
    """Rank 1 is stopped (SIGSTOP) for a second before an exchange; then the link is slow; then rank 1 dies."""
    results = run_job("late", 2, tmp_path)
    assert results[0]["causes"][:2] == ["slow peer", "slow link"]
    assert "island 1 came to the roll call" in results[0]["details"][0]
    assert results[0]["causes"][2] == "dead peer"
    assert results[0]["waited_s"][0] > 0.5
    assert results[0]["weights"] == results[1]["weights"] == results[0]["weights_of_the_simulation"]
    assert results[1]["causes"] == ["slow link"]
    # one machine's processes read one clock, so that theirs can be compared: 0.5 s apart if nothing were done
    assert abs(results[0]["clock_start"] - results[1]["clock_start"]) < 0.1


def test_run_with_late_exchanges_says_so_and_stops_if_told(tmp_path: Path) -> None:
    """Two processes, a slow wire, exchanges due after one step: events, summary, warning, exit code; a resume."""
    directory, log = tmp_path / "run", tmp_path / "log"
    recipe = runs.write_recipe(tmp_path, runs.write_corpus(tmp_path))
    common = ["train", f"{recipe}:streaming", "--transport", "collective", "--run-dir", str(directory)]

    def train(*flags: str, wire_s: float) -> list[int]:
        arguments = [*common, *flags]
        started = [
            runs.start(runs.late_main, (arguments, wire_s), log, variables) for variables in runs.islands_environment(2)
        ]
        return [runs.wait(child, log) for child in started]

    assert train("--sync.on-late", "stop", "--sync.late-tolerance-s", "0.1", wire_s=0.8) == [1, 1], log.read_text()
    late = [m for m in runs.metrics(directory) if m["event"] == "deadline"]
    assert [(m["cause"], m["fragment"], m["round"]) for m in late] == [("slow link", 0, 0)] * 2
    assert {m["island"] for m in late} == {0, 1} and all(m["waited_s"] > 0.1 for m in late)
    summary, text = runs.summary(directory), log.read_text()
    assert (summary["status"], summary["deadline_misses"]) == ("failed", 1)  # its own: a run that fails asks nobody
    assert summary["deadline_waited_s"] > 0.1
    assert "missed its deadline, training waited" in text and "sync.on_late = 'stop'" in text
    assert any("missed their deadline (2 by a slow link)" in w for w in warnings_of(load_run(directory)))
    assert train("--sync.on-late", "wait", "--resume", wire_s=0.0) == [0, 0], log.read_text()
    plain = tmp_path / "plain"
    assert main(["simulate", f"{recipe}:streaming", "--run-dir", str(plain)]) == 0
    for key in ("status", "tokens", "steps"):
        assert runs.summary(directory)[key] == runs.summary(plain)[key], key
