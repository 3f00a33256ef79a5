"""Exit codes and words of a run whose ranks ended in one way and another."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
from pathlib import Path

import pytest

from lowcomm.config import RunConfig
from lowcomm.island import IslandConfig
from lowcomm.run import launch as launch_module
from lowcomm.run.left_behind import GOES_ON, left_behind
from lowcomm.run.ranks import Ended, _watch

TERM, KILL = -signal.SIGTERM, -signal.SIGKILL
HUP = int(signal.SIGHUP)


@pytest.mark.parametrize(
    ("failed", "codes", "came", "code", "words"),
    [
        ({}, {0: 0, 1: 0}, None, 0, []),
        ({}, {0: 0, 1: 0}, HUP, 0, []),
        ({}, {0: 3, 1: 3}, HUP, 3, []),
        ({}, {0: 3, 1: 0}, HUP, 3, []),
        ({1: 3}, {0: 3, 1: 3}, None, 3, []),
        ({0: 3, 1: 3}, {0: 3, 1: 3}, None, 3, []),
        ({1: 3}, {0: 1, 1: 3}, None, 1, []),  # island 0 could not save, and has said so
        ({0: 2}, {0: 2, 1: TERM}, None, 2, []),
        ({0: 2, 1: 2}, {0: 2, 1: 2}, None, 2, []),
        ({1: KILL}, {0: 1, 1: KILL}, None, 1, ["island 1 was killed by SIGKILL"]),
        ({1: KILL}, {0: TERM, 1: KILL}, None, 1, ["island 1 was killed by SIGKILL"]),
        ({1: KILL}, {0: 3, 1: KILL}, None, 1, ["island 1 was killed by SIGKILL"]),
        ({0: 1}, {0: 1, 1: KILL}, None, 1, []),  # who was asked to stop, and did not, is not the cause
        ({}, {0: 3, 1: KILL}, HUP, 1, ["SIGHUP came, and ranks [1] ended without having saved"]),
        ({1: -signal.SIGSEGV}, {0: 1, 1: -signal.SIGSEGV}, None, 1, ["island 1 was killed by SIGSEGV"]),
    ],
)
def test_the_code_and_the_cause(
    failed: dict[int, int],
    codes: dict[int, int],
    came: int | None,
    code: int,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(launch_module, "run_ranks", lambda *_: Ended(failed=failed, codes=codes, signal=came))
    (tmp_path / "summary.json").write_text('{"status": "stopped"}')
    config = RunConfig(islands=2, island=IslandConfig(size=1), run_dir=tmp_path)
    assert launch_module.launch(config, ["train"]) == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(words)
    for line, start in zip(said, words, strict=True):
        assert line.startswith(f"lowcomm: error: {start}")
        assert "There is no checkpoint yet, so that it starts over. Fix: pass --resume auto" in line
    status = json.loads((tmp_path / "summary.json").read_text())["status"]
    assert status == ("failed" if code == 1 else "stopped")


def test_with_a_checkpoint_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = Ended(failed={3: KILL}, codes={0: 1, 1: 1, 2: 1, 3: KILL}, signal=None)
    monkeypatch.setattr(launch_module, "run_ranks", lambda *_: ended)
    (tmp_path / "checkpoints" / "000001" / "island-00000").mkdir(parents=True)
    config = RunConfig(islands=2, island=IslandConfig(size=2), run_dir=tmp_path)
    assert launch_module.launch(dataclasses.replace(config, threads=1), ["train"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "rank 3 (island 1) was killed by SIGKILL" in line
    assert "Earlier checkpoints are intact. Fix: pass --resume auto" in line


@pytest.mark.parametrize(
    ("codes", "lost", "failed", "code", "line"),
    [
        ({0: 0, 1: KILL, 2: 0}, [1], {}, 0, "warning: island 1 was killed by SIGKILL .*: the run went on without it"),
        ({0: KILL, 1: 0}, [0], {}, 0, "warning: island 0 was killed by SIGKILL .*: the run went on without it"),
        ({0: 3, 1: KILL, 2: 3}, [1], {}, 3, "error: island 1 was killed by SIGKILL .*: the run stops"),
        ({0: 1, 1: KILL, 2: 1}, [1], {0: 1}, 1, "error: island 1 was killed by SIGKILL .*: the run stops"),
        ({0: KILL}, [0], {}, 1, "error: island 0 was killed by SIGKILL .*: the run stops"),
    ],
)
def test_ranks_without_which_the_others_went_on(
    codes: dict[int, int],
    lost: list[int],
    failed: dict[int, int],
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended = Ended(failed=failed, codes=codes, signal=None, lost={k: codes[k] for k in lost})
    monkeypatch.setattr(launch_module, "run_ranks", lambda *_: ended)
    config = RunConfig(islands=len(codes), island=IslandConfig(size=1), run_dir=tmp_path, threads=1)
    assert launch_module.launch(config, ["train"]) == code
    (said,) = capsys.readouterr().err.splitlines()
    assert re.match(f"lowcomm: {line}", said), said


def supervised(tmp_path: Path, *programs: str, behind: list[int] | None = None, goes_on: bool = True) -> Ended:
    """The end of ranks that are shell programs. behind: those that the others say to have left behind."""
    if goes_on:
        (tmp_path / GOES_ON).touch()
    if behind is not None:
        (tmp_path / "members 1").write_text(json.dumps([k for k in range(len(programs)) if k not in behind]))
    return _watch([subprocess.Popen(["sh", "-c", program]) for program in programs], [], tmp_path)


def test_a_killed_rank_leaves_the_others_alone_where_they_go_on(tmp_path: Path) -> None:
    wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; exit $(cat {tmp_path}/go)"
    (tmp_path / "go").write_text("0")
    ended = supervised(tmp_path, wait, "kill -9 $$")
    assert (ended.code, ended.lost, ended.failed) == (0, {1: KILL}, {})
    assert supervised(tmp_path, "kill -9 $$", "kill -9 $$").code == 1
    (tmp_path / "none").mkdir()
    alone = supervised(tmp_path / "none", "sleep 100", "kill -9 $$", goes_on=False)
    assert (alone.code, alone.codes[0], alone.failed) == (1, TERM, {1: KILL})


def test_one_that_was_left_behind_is_not_waited_for(tmp_path: Path) -> None:
    ended = supervised(tmp_path, "exit 0", "kill -STOP $$; sleep 100", behind=[1])
    assert (ended.code, ended.codes, ended.lost) == (0, {0: 0, 1: KILL}, {1: KILL})
    assert left_behind(tmp_path, 3) == {1, 2}
    assert supervised(tmp_path, "sleep 0.2", "exit 1", behind=[1]).code == 0  # woken, and fenced
