"""What every benchmark shares: running cells as real `lowcomm` processes, and the result file with its table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lowcomm.run.run_dir import git_commit, hardware, write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: its directory name, the `lowcomm simulate` arguments, and the columns that identify its row."""

    name: str
    arguments: tuple[str, ...]
    columns: dict[str, Any]


def run_cells(cells: Sequence[Cell], work_dir: Path, jobs: int) -> list[dict[str, Any]]:
    """Run what is not done yet, `jobs` at a time with one thread each; returns the rows in the order of the cells."""
    work_dir.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda cell: _run(cell, work_dir), cells))
    return [_row(cell, work_dir) for cell in cells]


def is_done(cell: Cell, work_dir: Path) -> bool:
    """Whether the cell ran to its end."""
    summary = work_dir / cell.name / "summary.json"
    return summary.exists() and json.loads(summary.read_text(encoding="utf-8"))["status"] == "done"


def _run(cell: Cell, work_dir: Path) -> None:
    directory = work_dir / cell.name
    summary = directory / "summary.json"
    if is_done(cell, work_dir):
        return
    if directory.exists():
        subprocess.run(["rm", "-rf", str(directory)], check=True)
    command = [
        *(sys.executable, "-m", "lowcomm.cli", "simulate", *cell.arguments),
        *("--run-dir", str(directory), "--threads", "1", "--no-tensorboard", "--log-every", "50"),
        *("--checkpoint.every-rounds", "None", "--checkpoint.no-export"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{cell.name} failed ({done.returncode}):\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    bpb = json.loads(summary.read_text(encoding="utf-8"))["val_bpb"]
    print(
        f"{datetime.now(UTC):%H:%M:%S} {cell.name}: {bpb:.4f} bits/byte in {time.monotonic() - start:.0f} s", flush=True
    )


def _row(cell: Cell, work_dir: Path) -> dict[str, Any]:
    summary = json.loads((work_dir / cell.name / "summary.json").read_text(encoding="utf-8"))
    commit = json.loads((work_dir / cell.name / "environment.json").read_text(encoding="utf-8"))["commit"]
    keys = ("val_loss", "val_bpb", "tokens", "steps", "rounds", "islands", "bytes_sent", "bytes_received", "wall_s")
    return {**cell.columns, **{k: summary[k] for k in keys}, "parameters": summary["parameters"], "commit": commit}


def known_rows(name: str, wanted: Sequence[Cell], work_dir: Path) -> list[dict[str, Any]]:
    """Rows of what is done here, and of what an earlier result file tells of the other cells, with its commits."""
    earlier = RESULTS / f"{name}.json"
    rows = json.loads(earlier.read_text(encoding="utf-8"))["rows"] if earlier.exists() else []
    told = {(row["method"], row["seed"]): row for row in rows}
    found: list[dict[str, Any]] = []
    for cell in wanted:
        key = (cell.columns["method"], cell.columns["seed"])
        if is_done(cell, work_dir):
            found.append(_row(cell, work_dir))
        elif key in told:
            found.append(told[key])
    return found


def write_result_and_table(
    name: str, command: str, rows: Sequence[dict[str, Any]], table: Callable[[dict[str, Any]], str]
) -> Path:
    """As `write_result`, and beside it NAME.md with what `table` makes of the file."""
    path = write_result(name, command, rows)
    path.with_suffix(".md").write_text(table(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    return path


def write_result(name: str, command: str, rows: Sequence[dict[str, Any]]) -> Path:
    """benchmarks/results/NAME.json with commit, hardware and date."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    write_json(
        path,
        {
            "benchmark": name,
            "command": command,
            "commit": git_commit(),
            "hardware": hardware(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": list(rows),
        },
    )
    return path
