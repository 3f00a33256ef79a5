"""The benchmark of modes that never wait: its settings are valid, its clock and its table say what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import asynchrony
from lowcomm.config import RunConfig
from lowcomm.exchange.buffered import Buffered
from lowcomm.flags.assign import assign_parts


@pytest.mark.parametrize("name", asynchrony.MODES)
def test_every_mode_is_a_configuration(name: str) -> None:
    one = asynchrony.cell(name, 0.7, 0.5, 0, tuning=True)
    config, _ = assign_parts(RunConfig(), list(one.arguments[1:]))
    exchange = config.sync.exchange
    assert (exchange is None) == (name == "synchronous") and "--data.tuning" in one.arguments
    if isinstance(exchange, Buffered):
        exchange.check(4)
        assert exchange.goes_on == "own" and exchange.speeds == asynchrony.SPEEDS


def test_the_clock_is_that_of_the_slowest_island_for_rounds_only(tmp_path: Path) -> None:
    cells = [asynchrony.cell(name, 0.7, 0.5, 0, tuning=False) for name in ("synchronous", "timed (FedFix)")]
    rows: list[dict[str, Any]] = []
    for one, (steps, last) in zip(cells, ((640, 2.5), (1280, 2.4)), strict=True):
        (tmp_path / one.name).mkdir()
        curve = [{"step": steps // 2, "val_bpb": 2.45}, {"loss": 1.0}]
        (tmp_path / one.name / "metrics.jsonl").write_text("\n".join(map(json.dumps, curve)), encoding="utf-8")
        (tmp_path / one.name / "summary.json").write_text(json.dumps({"steps": steps, "val_bpb": last}))
        rows.append({**one.columns, "steps": steps, "val_bpb": last})
    waits, never = asynchrony.with_clock(rows, tmp_path, cells)
    assert (waits["virtual_wall_s"], waits["useful_time"]) == (2560.0, 0.5)
    assert (never["virtual_wall_s"], never["useful_time"]) == (1280.0, 1.0)
    assert never["reaches_sync_loss_at_s"] == 640.0 and never["loss_to_synchronous"] == pytest.approx(-0.04)
    text = asynchrony.table({"rows": [waits, never]})
    assert "| timed (FedFix) | 0.7, 0.5 | 1,280 s | 100% | 2.400" in text and "1 of 1, at most after 640 s" in text
