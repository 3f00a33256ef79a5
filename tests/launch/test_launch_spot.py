"""launch/spot.sh: an island that is kept alive. A program of a few lines stands for `lowcomm join`."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def stand_in(directory: Path, codes: str) -> Path:
    """A python that writes down how it was called and ends with one code after the other; "wait": when told to."""
    path = directory / "python"
    path.write_text(
        "#!/usr/bin/env bash\n"
        f'echo "$@" >> {directory}/calls\n'
        f"codes=({codes})\n"
        f"code=${{codes[$(wc -l < {directory}/calls) - 1]}}\n"
        'if [ "$code" = wait ]; then trap "exit 3" TERM; while true; do sleep 0.05; done; fi\n'
        'exit "$code"\n',
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


def spot(directory: Path, codes: str) -> subprocess.Popen[str]:
    command = ["launch/spot.sh", "--python", stand_in(directory, codes), "--name", "spot-1", "--least-s", "1"]
    return subprocess.Popen(
        [*map(str, command), "s3://bucket/run", "--threads", "1"], cwd=ROOT, text=True, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize(("codes", "code", "calls"), [("0", 0, 1), ("2", 2, 1), ("1 0", 0, 2)])
def test_it_joins_again_until_the_run_is_done(tmp_path: Path, codes: str, code: int, calls: int) -> None:
    process = spot(tmp_path, codes)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    lines = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert lines == ["-u -m lowcomm.cli join s3://bucket/run --name spot-1 --threads 1"] * calls
    assert said.count("joins again") == calls - 1


def test_a_signal_ends_both(tmp_path: Path) -> None:
    process = spot(tmp_path, "wait")
    while not (tmp_path / "calls").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 3
