"""Time to DDP's loss: which runs are made, where targets are reached, seconds from steps and syncs, and the tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import time_to_loss
from benchmarks.headline_methods import BASE, METHODS, NANO
from benchmarks.time_to_loss import cell_of, name_of, next_length
from benchmarks.time_to_loss_methods import ALONE, ENTRANTS, MUON_BASE, Entrant
from benchmarks.time_to_loss_rows import NOT_TIMED, Curve, Point, reached, recovered, rows_of, wall_s
from benchmarks.time_to_loss_table import time_to_loss_summary, time_to_loss_table

BY_NAME = {e.name: e for e in ENTRANTS}
DILOCO = "lowcomm DiLoCo fp32"
STEPS = NANO.steps


def curve(length: float, losses: Sequence[float], every_step: bool = False, step_bytes: float = 8.0) -> Curve:
    """Evaluations at equal distances, the last at the end of a run of that length."""
    total = round(length * STEPS)
    steps = [total * (i + 1) // len(losses) for i in range(len(losses))]
    return Curve(
        length=length,
        points=tuple(
            Point(step=s, bpb=b, syncs=s if every_step else s // 64, sent_bytes=step_bytes * s)
            for s, b in zip(steps, losses, strict=True)
        ),
    )


def timed(method: str, step_s: float, every: int = 1, plain_s: float = 0.01) -> dict[str, Any]:
    return {
        "preset": "nano", "method": method, "link": "slow-50ms", "rtt_ms": 50.0, "seed": 0, "H": every,
        "net_step_s": step_s, "net_plain_step_s": plain_s, "bytes_sent": 1000.0, "steps": 10,
    }  # fmt: skip


def test_every_entrant_is_timed_as_a_row_of_the_headline() -> None:
    names = {m.name for m in METHODS}
    assert {e.timed_as for e in ENTRANTS} - {None} <= names
    assert ENTRANTS[0].name == BASE and {e.base for e in ENTRANTS} == {BASE, MUON_BASE}
    assert len({e.key for e in ENTRANTS}) == len(ENTRANTS)


def test_a_target_is_reached_at_the_earliest_step_of_any_run() -> None:
    curves = [curve(1.0, [3.0, 2.5]), curve(2.0, [2.9, 2.0])]
    point, found = reached(curves, 2.5) or (None, None)
    assert point is not None and found is curves[0] and point.step == STEPS
    assert reached(curves, 1.9) is None
    late = reached(curves, 2.0)
    assert late is not None and late[0].step == 2 * STEPS


def test_seconds_are_those_of_steps_and_of_the_syncs_that_were_made() -> None:
    base = timed(BASE, 9.0)
    local = timed(DILOCO, 0.05, every=64)
    at = Point(step=640, bpb=2.0, syncs=10, sent_bytes=1.0)
    assert wall_s(BY_NAME[DILOCO], at, local, base) == pytest.approx(640 * 0.05)
    growing = Point(step=640, bpb=2.0, syncs=20, sent_bytes=1.0)
    sync_s = 64 * 0.04
    assert wall_s(BY_NAME[DILOCO], growing, local, base) == pytest.approx(640 * 0.01 + 20 * sync_s)
    assert wall_s(BY_NAME[ALONE], at, None, base) == pytest.approx(640 * 0.01)
    assert wall_s(BY_NAME[DILOCO], at, None, base) is None


def test_the_share_that_is_recovered() -> None:
    assert recovered(1.9, 2.2, 1.8) == pytest.approx(0.75)
    assert recovered(None, 2.2, 1.8) is None and recovered(1.9, None, 1.8) is None


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """DDP, DiLoCo that needs a run of 1.25 lengths, one island alone that never gets there, one method not timed."""
    curves = {
        (BASE, 0): [curve(1.0, [3.0, 2.6, 2.3, 2.0], every_step=True, step_bytes=100.0)],
        (ALONE, 0): [curve(1.0, [3.1, 2.9, 2.7, 2.4], step_bytes=0.0), curve(3.0, [2.9, 2.5, 2.3, 2.1])],
        (DILOCO, 0): [curve(1.0, [3.0, 2.6, 2.3, 2.1]), curve(1.25, [3.1, 2.7, 2.4, 2.2, 2.0])],
        ("lowcomm MuLoCo 2-bit", 0): [curve(1.0, [2.8, 2.4, 2.1, 1.9])],
    }
    headline = {"rows": [timed(BASE, 9.0), timed(DILOCO, 0.05, every=64)]}
    return rows_of(curves, headline, NANO)


def row(rows: list[dict[str, Any]], method: str, share: float = 1.0) -> dict[str, Any]:
    (found,) = [r for r in rows if (r["method"], r["target_share"], r["link"]) == (method, share, "slow-50ms")]
    return found


def test_rows_say_steps_seconds_and_bytes_to_ddps_losses(rows: list[dict[str, Any]]) -> None:
    ddp, diloco = row(rows, BASE), row(rows, DILOCO)
    assert [row(rows, BASE, s)["target_bpb"] for s in (0.25, 0.5, 1.0)] == [3.0, 2.6, 2.0]
    assert ddp["steps_to_target"] == STEPS and ddp["wall_s_to_target"] == pytest.approx(STEPS * 9.0)
    assert diloco["steps_to_target"] == 1.25 * STEPS and diloco["length"] == 1.25
    assert diloco["speedup_over_ddp"] == pytest.approx(9.0 / (1.25 * 0.05), rel=1e-3)
    assert diloco["bytes_ratio_to_ddp"] == pytest.approx(100 / (1.25 * 8))
    assert diloco["bpb_at_equal_tokens"] == 2.1 and diloco["recovered"] == pytest.approx(0.75)
    full_s = 32 * NANO.parameters / 0.75e6 + 0.01
    assert diloco["speedup_over_full_link"] == pytest.approx(full_s / (1.25 * 0.05), rel=1e-3)
    assert row(rows, DILOCO, 0.5)["steps_to_target"] == STEPS / 2


def test_what_was_not_reached_or_not_timed_has_no_seconds(rows: list[dict[str, Any]]) -> None:
    alone, muon = row(rows, ALONE), row(rows, "lowcomm MuLoCo 2-bit")
    assert alone["steps_to_target"] is alone["wall_s_to_target"] is alone["speedup_over_ddp"] is None
    assert alone["wall_s_from"] == "not reached" and alone["longest"] == 3.0
    assert muon["steps_to_target"] == STEPS and muon["wall_s_to_target"] is None
    assert muon["wall_s_from"] == NOT_TIMED
    assert muon["speedup_over_ddp_same_inner"] is None  # DDP with Muon was not run


def test_a_run_that_could_be_longer_is_not_called_a_failure() -> None:
    curves = {(BASE, 0): [curve(1.0, [2.0], every_step=True)], (DILOCO, 0): [curve(1.0, [2.1])]}
    found = row(rows_of(curves, {"rows": [timed(BASE, 9.0)]}, NANO), DILOCO)
    assert found["steps_to_target"] is None and found["wall_s_from"] == "not run on"


def test_tables_mark_what_has_fewer_seeds(rows: list[dict[str, Any]]) -> None:
    result = {
        "rows": rows, "command": "python -m benchmarks.time_to_loss", "created": "2026-12-01T00:00",
        "hardware": {"cpu": "some CPU"},
    }  # fmt: skip
    for text in (time_to_loss_table(result), time_to_loss_summary(result)):
        assert f"{DILOCO} (1 seed)" in text and "not reached" in text
    assert "| 75% |" in time_to_loss_table(result)
    again = [{**r, "seed": s} for s in range(3) for r in rows]
    assert "seed)" not in time_to_loss_summary({**result, "rows": again})


def written(work_dir: Path, entrant: Entrant, seed: int, length: float, losses: Sequence[float]) -> None:
    """A run as `lowcomm simulate` leaves it."""
    directory = work_dir / name_of(entrant, seed, length)
    directory.mkdir(parents=True)
    points = curve(length, losses).points
    lines = [
        {"event": "eval", "step": p.step, "val_bpb": p.bpb, "round": p.syncs, "bytes_sent": p.sent_bytes}
        for p in points
    ]
    (directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (directory / "summary.json").write_text('{"status": "done"}', encoding="utf-8")


def test_longer_runs_are_made_until_one_reaches_the_target(tmp_path: Path) -> None:
    ddp, diloco = ENTRANTS[0], BY_NAME[DILOCO]
    assert next_length(ddp, 0, tmp_path) == 1.0
    for seed in (0, 1):
        written(tmp_path, ddp, seed, 1.0, [3.0, 2.0])
    assert next_length(ddp, 0, tmp_path) is None
    assert next_length(diloco, 0, tmp_path) == 1.0
    written(tmp_path, diloco, 0, 1.0, [3.0, 2.1])
    assert next_length(diloco, 0, tmp_path) == 1.25
    written(tmp_path, diloco, 0, 1.25, [3.0, 2.0])
    assert next_length(diloco, 0, tmp_path) is None
    assert next_length(diloco, 1, tmp_path) == 1.25  # where seed 0 got there
    for length in (1.25, 1.5, 2.0, 3.0):
        assert next_length(diloco, 1, tmp_path) == length
        written(tmp_path, diloco, 1, length, [3.0, 2.1])
    assert next_length(diloco, 1, tmp_path) is None


def test_a_run_has_its_length_and_its_own_end() -> None:
    arguments = cell_of(BY_NAME[DILOCO], 2, 1.5, NANO).arguments
    told = dict(zip(arguments[1::2], arguments[2::2], strict=False))
    assert told["--steps"] == str(round(1.5 * STEPS)) and told["--seed"] == "2" and told["--islands"] == "2"
    assert int(told["--eval.every"]) == time_to_loss.EVAL_EVERY
    assert "--batched" not in cell_of(BY_NAME[ALONE], 0, 1.0, NANO).arguments
