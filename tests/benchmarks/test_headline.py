"""The headline comparison: what its rows and table say of measured windows, and the smallest peer for real."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.headline import environment, is_timed
from benchmarks.headline_methods import BASE, METHODS, NANO, SIZES, Method, window
from benchmarks.headline_report import headline_table
from benchmarks.headline_rows import cell_of, rows_of, with_ratios
from benchmarks.peers import interface
from benchmarks.peers.session import Plan, is_steadier
from lowcomm.trainer import train
from tests.support.runs import free_port, summary, variant, write_corpus

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
from dataclasses import replace
from pathlib import Path
from tests.support.runs import variant

def ddp():
    return replace(variant("ddp", Path({corpus!r}), None), transport="collective")
"""
BY_NAME = {m.name: m for m in METHODS}
SLOW = next(line for line in NANO.lines if line.name == "slow-0ms")


def measured(step_s: float, sent_bytes: int, plain_after_s: float = 0.01) -> dict[str, Any]:
    """What one island writes of a window of four units of two steps, one of them disturbed."""
    return {
        "steps": 8,
        "unit_step_s": [step_s, step_s, 9 * step_s, step_s],
        "plain_step_s": [0.01, 0.03],
        "plain_net_s": [0.01, plain_after_s],
        "peak_sent_bytes_per_s": sent_bytes,
        "unit_wait_s": [0.0, 0.0, 8 * step_s, step_s / 2],
        "sent_bytes": sent_bytes,
        "received_bytes": 2 * sent_bytes,
        "own_sent_bytes": sent_bytes - 10,
    }


def test_a_cell_is_the_slower_island_s_median_step_and_mean_bytes_brought_to_the_whole_run() -> None:
    cell = cell_of([measured(0.1, 80), measured(0.2, 160)], replace(NANO, steps=80), rate_mbit=32.0)
    assert cell["step_s"] == pytest.approx(0.2)
    assert cell["slowest_over_median"] == pytest.approx(9)
    assert cell["utilisation"] == pytest.approx(0.02 / 0.2)  # plain: the mean of before and after
    assert cell["cpu_wait_share"] == pytest.approx(8.5 / 12)
    assert cell["net_step_s"] == pytest.approx(0.2)  # of 0.2, 0.2, 0.2 and 0.1
    assert cell["net_utilisation"] == pytest.approx(0.01 / 0.2)
    assert cell["wall_s"] == pytest.approx(80 * 0.2)
    assert (cell["bytes_sent"], cell["bytes_received"], cell["own_bytes_sent"]) == (1200, 2400, 1100)
    full_link_s = NANO.parameters * 32 / 32e6
    assert cell["net_speedup_over_full_link"] == pytest.approx((full_link_s + 0.01) / 0.2)
    assert cell["peak_mbit"] == pytest.approx(160 * 8e-6)
    assert cell["wall_s_from"] == "steps x measured s/step"


def test_one_island_that_does_not_count_leaves_no_count() -> None:
    silent = {**measured(0.1, 80), "own_sent_bytes": None}
    assert cell_of([measured(0.1, 80), silent], replace(NANO, steps=8), rate_mbit=1.0)["own_bytes_sent"] is None


def test_ratios_are_against_torch_s_ddp_on_the_same_link_with_the_same_seed() -> None:
    def row(method: str, link: str, seed: int, step_s: float, sent: int) -> dict[str, Any]:
        return {
            "method": method,
            "link": link,
            "seed": seed,
            "step_s": step_s,
            "net_step_s": step_s / 2,
            "bytes_sent": sent,
        }

    rows = with_ratios(
        [
            row(BASE, "a", 0, 4.0, 1000),
            row(BASE, "a", 1, 6.0, 1000),
            row("x", "a", 1, 2.0, 10),
            row("x", "b", 0, 1.0, 5),
        ]
    )
    found = [(r["speedup_over_ddp"], r["bytes_ratio_to_ddp"]) for r in rows]
    assert rows[2]["net_speedup_over_ddp"] == pytest.approx(3.0)
    assert found == [(1.0, 1.0), (1.0, 1.0), (3.0, 100.0), (None, None)]


def write_cell(work_dir: Path, method: Method, step_s: float, plain_after_s: float = 0.01) -> Path:
    where = work_dir / f"{method.key}-seed0"
    where.mkdir(exist_ok=True)
    for rank in (0, 1):
        path = where / f"{SLOW.name}.rank{rank}.json"
        path.write_text(json.dumps(measured(step_s, 1000, plain_after_s)), encoding="utf-8")
    return where


def test_rows_and_table_of_what_is_done(tmp_path: Path) -> None:
    ddp, ours = BY_NAME[BASE], BY_NAME["lowcomm DiLoCo fp32"]
    write_cell(tmp_path, ddp, 8.0)
    write_cell(tmp_path, ours, 0.02)
    (tmp_path / f"{ddp.key}-seed0" / "quality.json").write_text('{"val_bpb": 2.5, "steps": 5120}', encoding="utf-8")
    rows = rows_of(tmp_path, seeds=1)
    assert [(r["method"], r["link"], r["val_bpb"]) for r in rows] == [
        (BASE, "slow-0ms", 2.5),
        ("lowcomm DiLoCo fp32", "slow-0ms", None),
    ]
    assert rows[1]["speedup_over_ddp"] == pytest.approx(400)
    assert rows[1]["val_bpb_from"] == "not run"
    hardware = {"cpu": "a processor"}
    table = headline_table({"rows": rows, "command": "c", "hardware": hardware, "created": "2026-01-01T00:00:00"})
    assert "**nano, 0.75 Mbit/s, 0 ms round trip**" in table
    assert "| lowcomm DiLoCo fp32 | 64 | - | 0.64 | 1/1 | 0.008 | 102 | 400.0x | 100.0% | 400.0x | 50.0% |" in table


def test_a_cell_in_which_the_machine_changed_its_pace_is_measured_again(tmp_path: Path) -> None:
    steady = write_cell(tmp_path, BY_NAME[BASE], 8.0)
    torn = write_cell(tmp_path, BY_NAME["lowcomm DDP"], 8.0, plain_after_s=0.012)
    assert is_timed(steady, SLOW)
    assert not is_timed(torn, SLOW)
    assert not is_timed(steady, NANO.lines[0])
    cell = torn / f"{SLOW.name}.rank0.json"
    assert is_steadier(measured(8.0, 1000, plain_after_s=0.0095), cell)
    assert is_steadier(measured(8.0, 1000, plain_after_s=0.02), torn / "none.json")
    assert not is_steadier(measured(8.0, 1000, plain_after_s=0.008), cell)


def test_the_peak_rate_is_of_the_busiest_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = iter([0, 10, 1010, 1020])
    looks = threading.Semaphore(0)

    def counters() -> tuple[int, int]:
        looks.release()
        return next(sent, 1020), 0

    monkeypatch.setattr(interface, "interface_bytes", counters)
    monkeypatch.setattr(interface, "PEAK_S", 0.001)
    with interface.PeakRate() as peak:
        for _ in range(5):
            assert looks.acquire(timeout=20)
    assert 0 < peak.sent_bytes_per_s <= 1000 / 0.0005


def test_windows_are_whole_rounds_and_keys_are_unique() -> None:
    assert len({m.key for m in METHODS}) == len(METHODS)
    for method, size in itertools.product(METHODS, SIZES.values()):
        for line in size.lines:
            made = window(method, line, size)
            assert made.steps % method.every == 0 and made.warmup_steps % method.every == 0
            assert made.steps % made.unit_steps == 0 and made.delay_ms * 2 == line.rtt_ms


def test_stock_ddp_trains_two_islands_to_the_same_loss_as_lowcomm_s(tmp_path: Path) -> None:
    """Two real processes, 12 steps, no shaping, beside the simulated run."""
    recipe, corpus, port = tmp_path / "recipe.py", write_corpus(tmp_path), free_port()
    recipe.write_text(RECIPE.format(corpus=str(corpus)), encoding="utf-8")
    Plan(recipe=f"{recipe}:ddp", seed=3, train_steps=12).write(tmp_path / "plan.json")
    command = [sys.executable, "-m", "benchmarks.peers.torch_ddp", str(tmp_path / "plan.json"), str(tmp_path)]
    children = []
    for rank in (0, 1):
        own = {"GLOO_SOCKET_IFNAME": "lo", "MASTER_PORT": str(port), "HOME": os.environ["HOME"]}
        with (tmp_path / f"{rank}.log").open("wb") as log:
            variables = {**environment(rank, "127.0.0.1", "127.0.0.1", None), **own}
            children.append(subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log))
    assert train(variant("ddp", corpus, tmp_path / "simulated", seed=3)) == 0
    codes = [child.wait(60) for child in children]
    assert codes == [0, 0], (tmp_path / "0.log").read_text(encoding="utf-8")
    found = json.loads((tmp_path / "quality.json").read_text(encoding="utf-8"))
    assert found["steps"] == 12
    assert found["val_bpb"] == pytest.approx(summary(tmp_path / "simulated")["val_bpb"], rel=1e-6)
