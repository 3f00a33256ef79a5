"""Who goes on when a group is broken: the board, the agreement on it, heartbeats; and real islands that die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from lowcomm.cli import main
from lowcomm.config import SyncConfig
from lowcomm.exchange.sum import sealed, unsealed
from lowcomm.state.cohort import Cohort
from lowcomm.state.deadlines import Deadlines, Late
from lowcomm.state.outgoing import Pending
from lowcomm.transport.board import Board, FileBoard
from lowcomm.transport.heartbeat import Condition, Heartbeat, check_heartbeat
from lowcomm.transport.regroup import Epoch, Standing, agree, check_member, furthest
from lowcomm.types import ConfigError, FencedError, TransportError
from tests.support import runs


class Table(Board):
    """A board in memory, on which some ranks are dead."""

    def __init__(self, dead: Sequence[int] = ()) -> None:
        self.texts: dict[str, str] = {}
        self.dead = set(dead)
        self._lock = threading.Lock()

    def post(self, key: str, text: str) -> None:
        self.texts[key] = text

    def read(self, key: str) -> str | None:
        return self.texts.get(key)

    def decide(self, key: str, text: str) -> str:
        with self._lock:
            return self.texts.setdefault(key, text)

    def join(self, rank: int) -> None:
        return None

    def is_dead(self, rank: int) -> bool:
        return rank in self.dead

    def meeting(self, number: int) -> dist.Store:
        raise NotImplementedError


def agreed(board: Board, there: Mapping[int, Standing], ranks: int, silent_s: float = 60.0) -> dict[int, Any]:
    """What each rank that is there makes of it, all at once."""
    found: dict[int, Any] = {}

    def one(rank: int) -> None:
        beat = Heartbeat(board, rank, range(ranks), 1.0)
        for peer in beat.peers.values():
            peer.heard_s = time.monotonic()
        try:
            found[rank] = agree(beat, Epoch(number=0, members=tuple(range(ranks))), there[rank], silent_s)
        except (TransportError, FencedError) as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in there]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@settings(max_examples=20)
@given(st.integers(2, 5).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=n - 1))))
def test_the_living_agree_on_the_living(drawn: tuple[int, set[int]]) -> None:
    ranks, dead = drawn
    living = [k for k in range(ranks) if k not in dead]
    there = {k: Standing(closed=3 + (k == living[-1]), table=str(k)) for k in living}
    found = agreed(Table(sorted(dead)), there, ranks)
    for epoch, standings, lost in found.values():
        assert epoch == Epoch(number=1, members=tuple(living))
        assert furthest(standings) == there[living[-1]]
        assert set(lost) == dead and set(lost.values()) <= {"its process is gone"}


def test_a_silent_one_is_left_behind_and_fenced_when_it_wakes() -> None:
    board, standing = Table(), Standing(closed=0, table=None)
    found = agreed(board, {0: standing, 2: standing}, 3, silent_s=0.05)
    assert all(epoch.members == (0, 2) and "silent for" in lost[1] for epoch, _, lost in found.values())
    woken = agreed(board, {1: standing}, 3)[1]
    assert isinstance(woken, FencedError) and "islands [0, 2] have gone on without it" in str(woken)
    with pytest.raises(FencedError):
        check_member(Heartbeat(board, 1, range(3), 1.0), Epoch(number=0, members=(0, 1, 2)))


def test_one_that_leaves_of_its_own_will_ends_the_run() -> None:
    board, standing = Table(dead=[1]), Standing(closed=0, table=None)
    Heartbeat(board, 1, range(2), 1.0).stop("stopped")
    error = agreed(board, {0: standing}, 2)[0]
    assert isinstance(error, TransportError) and "island 1 has left the run (stopped)" in str(error)


def _hold(directory: str, joined: Any) -> None:
    FileBoard(Path(directory)).join(1)
    joined.set()
    signal.pause()


def test_a_board_of_files_knows_the_dead(tmp_path: Path) -> None:
    board = FileBoard(tmp_path)
    board.join(0)
    assert not board.is_dead(1) and board.read("a") is None
    board.post("a", "x")
    assert board.decide("b", "first") == board.decide("b", "second") == board.read("b") == "first"
    joined = multiprocessing.get_context("forkserver").Event()
    child = runs.forkserver().Process(target=_hold, args=(str(tmp_path), joined))
    child.start()
    joined.wait()
    assert not board.is_dead(1)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    assert board.is_dead(1)
    assert stat.S_IMODE((tmp_path / "rank 0").stat().st_mode) == 0o600


def test_heartbeats_tell_silent_dead_and_heard_again() -> None:
    board = Table()
    beat, heard = Heartbeat(board, 0, range(2), 0.1), list[tuple[int, Condition]]()
    told = threading.Event()

    def listen(rank: int, condition: Condition, passed_s: float) -> None:
        heard.append((rank, condition))
        told.set()

    beat.listeners.append(listen)

    def after(act: Callable[[], object]) -> None:
        told.clear()
        act()
        assert told.wait(60)

    after(beat.start)
    after(lambda: board.post("beat 1", "1"))
    after(lambda: board.dead.add(1))
    beat.stop("done")
    assert heard[:2] == [(1, "silent"), (1, "alive")] and heard[-1] == (1, "dead")
    assert board.read("left 0") == "done" and int(board.read("beat 0") or 0) > 0


@pytest.mark.parametrize("every_s", [0.0, -1.0, 0.01, 1e9, float("nan")])
def test_a_heartbeat_out_of_range_is_refused(every_s: float) -> None:
    with pytest.raises(ConfigError, match=r"sync\.heartbeat_s = .* is not allowed: 0\.1 to 3600 seconds"):
        check_heartbeat(every_s, "sync.")
    check_heartbeat(None)
    assert SyncConfig().heartbeat_s is not None


@given(st.integers(1, 5), st.integers(0, 63), st.integers(0, 7))
def test_every_flipped_bit_of_a_part_is_seen(size: int, byte: int, bit: int) -> None:
    row = sealed(torch.arange(float(size)))
    found: dict[int, str] = {}
    assert torch.equal(unsealed(row, 2, found), torch.arange(float(size))) and not found
    row[byte % len(row)] ^= 1 << bit
    unsealed(row, 2, found)
    assert "altered on its way" in found[2]


def test_long_blocking_waits_are_told() -> None:
    told: list[Late] = []
    deadlines = Deadlines("wait")
    deadlines.listeners.append(told.append)
    for arrivals_s, wanted in (([2.0, 3.5], 0), ([2.0, 4.5], 1), ([0.1, 1.0], 1)):
        halves = [0.5, 0.5]
        cohort = Cohort(weights=halves, tokens=halves, dropped={}, norms=halves, arrivals_s=arrivals_s)
        pending = Pending(cohort=cohort)
        pending.future.set_result(None)
        deadlines.receive(_out(), pending, 0, due=False)
        assert len(told) == wanted
    assert told[0].cause == "slow peer" and "island 1 came to the roll call 2.500 s after this one" in told[0].detail
    assert deadlines.misses == 0


def _out() -> Any:
    return SimpleNamespace(round=SimpleNamespace(index=3), index=0)


def begin(
    tmp_path: Path, islands: int, fault: str, *flags: str, recipe: str = "plain"
) -> tuple[list[ForkServerProcess], Path]:
    """Islands as the supervisor starts them, of the recipe of benchmarks/faults.py."""
    store = tmp_path / "store"
    store.mkdir(mode=0o700, exist_ok=True)
    path = f"{runs.ROOT / 'benchmarks' / 'faults_recipe.py'}:{recipe}"
    command = ["train", path, "--run-dir", str(tmp_path / "run"), "--steps", "48", *flags]
    shared = {"WORLD_SIZE": str(islands), "LOCAL_WORLD_SIZE": str(islands), "GLOO_SOCKET_IFNAME": "lo"}
    shared |= {"LOWCOMM_STORE": str(store / "store"), "FAULT": fault, "FAULT_AT": str(tmp_path / "at")}
    shared |= {"TORCH_GLOO_LAZY_INIT": "0"}
    return [
        runs.start(main, (command,), tmp_path / "log", {**shared, "RANK": str(k), "LOCAL_RANK": str(k)})
        for k in range(islands)
    ], tmp_path / "run"


def ended(children: Sequence[ForkServerProcess], tmp_path: Path) -> list[int]:
    return [runs.wait(child, tmp_path / "log", 200) for child in children]


@pytest.mark.parametrize(
    ("recipe", "fault", "lost"),
    [
        ("plain", "kill_in_exchange 0 2", "0"),
        ("reduced", "kill_in_exchange 1 2", "1"),
        ("streamed", "kill_after_apply 1 4", "1"),
    ],
)
def test_a_killed_island_costs_at_most_its_round(tmp_path: Path, recipe: str, fault: str, lost: str) -> None:
    children, run = begin(tmp_path, 3, fault, recipe=recipe)
    codes = ended(children, tmp_path)
    log = (tmp_path / "log").read_text()
    assert codes == [-9 if str(k) == lost else 0 for k in range(3)], log
    summary = runs.summary(run)
    assert summary["status"] == "done" and list(summary["lost"]) == [lost] and summary["steps"] == 48
    assert recipe == "streamed" or summary["rounds"] == 6
    metrics = runs.metrics(run)
    assert any(m["event"] == "heartbeat" and m["cause"] == "dead" for m in metrics), log
    sums = [m["round"] for m in metrics if m["event"] == "sync" and m["island"] == 2]
    assert sums == sorted(set(sums))  # no round twice


def test_two_of_two_without_a_quorum_stop_and_all_restarted_go_on(tmp_path: Path) -> None:
    whole = ("--sync.quorum", "1.0")
    children, run = begin(tmp_path, 2, "kill_at_start 1 3", *whole)
    assert ended(children, tmp_path) == [1, -9]
    log = (tmp_path / "log").read_text()
    assert "round 3 has no quorum" in log and "continue with --resume auto" in log
    (tmp_path / "store" / "store").unlink()
    for path in (tmp_path / "store").iterdir():
        path.unlink()
    children, run = begin(tmp_path, 2, "none 0 0", *whole, "--resume", "auto")
    assert ended(children, tmp_path) == [0, 0], (tmp_path / "log").read_text()
    assert "island 1 was lost when it was saved: it takes the global weights" in (tmp_path / "log").read_text()
    assert runs.summary(run)["status"] == "done" and runs.summary(run)["lost"] == {}


def test_an_altered_contribution_is_named_and_left_out(tmp_path: Path) -> None:
    children, run = begin(tmp_path, 3, "flip_contribution 1 2")
    assert ended(children, tmp_path) == [0, 0, 0], (tmp_path / "log").read_text()
    notes = [m["note"] for m in runs.metrics(run) if m["note"]]
    wanted = "island 1 was left out of round 2: its contribution was altered on its way: its checksum differs"
    assert wanted in notes and not any("left out of round 3" in n for n in notes)
    assert runs.summary(run)["lost"] == {}


def test_a_frozen_island_is_left_behind_and_writes_nothing_when_it_wakes(tmp_path: Path) -> None:
    children, run = begin(tmp_path, 3, "freeze 1 2", "--sync.timeout-s", "2")
    assert [runs.wait(children[k], tmp_path / "log", 200) for k in (0, 2)] == [0, 0], (tmp_path / "log").read_text()
    before = (run / "metrics.jsonl").read_bytes(), sorted(run.rglob("island-00001"))
    os.kill(children[1].pid or 0, signal.SIGCONT)
    assert runs.wait(children[1], tmp_path / "log", 200) == 1
    assert ((run / "metrics.jsonl").read_bytes(), sorted(run.rglob("island-00001"))) == before
    log = (tmp_path / "log").read_text()
    assert "island 1 was silent for too long, and islands [0, 2] have gone on without it" in log
    assert any(m["event"] == "heartbeat" and m["cause"] == "silent" for m in runs.metrics(run))
    assert list(runs.summary(run)["lost"]) == ["1"]
