"""Copies of a process that stand for processes started anew."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lowcomm.run import forked
from lowcomm.run.forked import Forked, ask, may_fork
from lowcomm.run.ranks import _watch, run_ranks
from lowcomm.run.signals import caught
from lowcomm.types import ConfigError

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux copies processes here"),
    # a worker of pytest-xdist has threads: Python 3.12 and later warn of what `may_fork` refuses elsewhere
    pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning"),
]


def waits(path: Path) -> Callable[[], int]:
    """A body that says that it is there, and waits to be told to go."""

    def body() -> int:
        path.touch()
        while True:
            time.sleep(60)

    return body


def appears(path: Path) -> None:
    """Wait for a file."""
    while not path.exists():
        time.sleep(0.01)


def test_codes_and_variables_are_those_of_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "a")

    def body() -> int:
        (tmp_path / "seen").write_text(
            f"{os.environ['KEPT']} {os.environ['GIVEN']} {torch.get_num_threads()} {os.getsid(0) == os.getpid()} "
            f"{Path('/proc/self/comm').read_text().strip()}"
        )
        return 3

    before = torch.get_num_threads()
    child = Forked(body, {"GIVEN": "b", "OMP_NUM_THREADS": "3"}, "a name that is too long")
    assert child.wait() == 3 and child.poll() == 3
    assert (tmp_path / "seen").read_text() == "a b 3 True a name that is"
    assert torch.get_num_threads() == before and "GIVEN" not in os.environ
    assert [Forked(lambda code=code: code, {}, "x").wait() for code in (0, 1, 2)] == [0, 1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_ends_it_though_its_supervisor_catches_it(number: signal.Signals, tmp_path: Path) -> None:
    with caught() as came:
        child = Forked(waits(tmp_path / "there"), {}, "x")
        appears(tmp_path / "there")
        child.send_signal(number)
        code = child.wait()
    assert code in ((-number, 1) if number == signal.SIGINT else (-number,))  # 1: KeyboardInterrupt
    assert not came
    child.send_signal(number)  # it is gone: nothing else gets it
    child.kill()


def test_an_error_of_a_copy_runs_nothing_of_its_supervisor(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        raise RuntimeError("the body's own")

    try:
        child = Forked(body, {}, "x")
        assert child.wait() == 1
    finally:
        with (tmp_path / "ends").open("a") as file:
            file.write(f"{os.getpid()}\n")
    assert (tmp_path / "ends").read_text() == f"{os.getpid()}\n"
    assert "the body's own" in capfd.readouterr().err


def test_ranks_are_told_apart_and_watched(tmp_path: Path) -> None:
    def body() -> int:
        (tmp_path / os.environ["RANK"]).write_text(f"{os.environ['WORLD_SIZE']} {os.getppid()}")
        return 0

    ended = run_ranks(3, ["not used"], {}, None, body)
    assert ended.code == 0 and ended.codes == {0: 0, 1: 0, 2: 0}
    assert {path.read_text() for path in tmp_path.iterdir()} == {f"3 {os.getpid()}"}
    killed = _watch([Forked(lambda: 0, {}, "x"), Forked(lambda: os.kill(os.getpid(), 9) or 0, {}, "x")], [], tmp_path)
    assert (killed.code, killed.failed) == (1, {1: -signal.SIGKILL})


def test_a_process_with_threads_is_not_copied() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert not may_fork()
    finally:
        done.set()
        thread.join()


def test_a_machine_with_a_gpu_copies_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(forked, "_GPUS", (str(tmp_path / "nvidiactl"),))
    assert not may_fork()


def test_a_question_is_answered_by_a_copy(capfd: pytest.CaptureFixture[str]) -> None:
    def guarded(call: Callable[[], int]) -> int:
        try:
            return call()
        except ConfigError as error:
            print(error, file=sys.stderr)
            return 2

    def refuses() -> list[int]:
        raise ConfigError("no. Fix: ask another")

    def dies() -> list[int]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []

    seen: list[int] = []
    assert ask(lambda: seen.append(1) or [7, os.getpid() != 0], guarded) == (0, [7, True])
    assert not seen  # what it did stays with the copy
    assert ask(refuses, guarded) == (2, [])
    assert capfd.readouterr().err == "no. Fix: ask another\n"
    assert ask(dies, guarded) == (1, [])
