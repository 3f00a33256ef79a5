"""Exit codes and words of a run whose ranks ended in one way and another."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import pytest

from lowcomm.config import RunConfig
from lowcomm.island import IslandConfig
from lowcomm.run import launch as launch_module
from lowcomm.run.ranks import Ended

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
