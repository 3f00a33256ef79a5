"""A run that is refused before anything starts: exit code 2, one line, no directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch.distributed as dist

from lowcomm.cli import main


def refused(
    recipe: str,
    arguments: Sequence[str],
    run_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """What `lowcomm train` says of these arguments."""

    def fail(*_: object) -> int:
        raise AssertionError("something was started")

    monkeypatch.setattr("lowcomm.run.launch.launch", fail)
    monkeypatch.setattr(dist, "init_process_group", fail)
    code = main(["train", recipe, "--run-dir", str(run_dir), *arguments])
    captured = capsys.readouterr()
    assert code == 2, captured
    assert captured.err.count("\n") == 1
    assert not run_dir.exists()
    return captured.err
