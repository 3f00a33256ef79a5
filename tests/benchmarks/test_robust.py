"""The table of rules against attacks: cells that can run, and rows read from notes as rules write them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.robust import HONEST, ISLANDS, LEFT_OUT, RULES, Cell, cells
from benchmarks.robust_report import robust_table
from benchmarks.robust_rows import chosen_right, with_success
from lowcomm.aggregate import Context
from lowcomm.config_check import check
from lowcomm.types import Contribution, Round

PLAIN = Cell(rule="multi-Krum", attack="sign flip", attackers=2, split="iid", seed=0)


def test_every_cell_is_another_run_that_passes_the_checks(tmp_path: Path, long: bool) -> None:
    found = list(cells(1))
    assert len({cell.name for cell in found}) == len(found)
    for cell in found[:: 1 if long else 13]:
        check(cell.config(tmp_path), ISLANDS)


@pytest.mark.parametrize("rule", [r for r in RULES if r != "gate"])
def test_who_counted_is_read_from_the_notes_as_they_are(rule: str) -> None:
    """Six alike and two that are far off: rules that choose or weigh give these less than the mean would."""
    generator = torch.Generator().manual_seed(0)
    deltas = [{"w": torch.randn(50, generator=generator) * 0.1 + (1 if k < 6 else -3)} for k in range(8)]
    found = [Contribution(island=k, delta=d, weight=1 / 8, round=0) for k, d in enumerate(deltas)]
    now = Round(index=0, step=10, fragments=(0,), seed=1)
    notes = [f"round 0: {n}" for n in RULES[rule].combine(found, Context(start=deltas[0], round=now)).notes]
    right = chosen_right(notes, {**dataclasses.asdict(PLAIN), "rule": rule}, ISLANDS, 1)
    if rule in ("median", "trimmed mean", "NNM, trimmed mean", "bucketing, median"):
        assert right is None
    else:
        assert right is not None
        if rule in ("trust", "FedCPA"):  # one knows of no round before, the other looks at matrices
            assert right == 0
            return
        assert 0.3 < right <= 1
        assert (right == 1) == (rule in ("multi-Krum", "MoNNA", "SMEA", "SybilWall"))


def test_of_the_gate_those_that_it_left_out_do_not_count() -> None:
    cell = {**dataclasses.asdict(PLAIN), "rule": "gate"}
    assert chosen_right([], cell, ISLANDS, 2) == 0
    notes = ["island 6 was left out of round 0: its norm", "island 7 was left out of round 0: its norm"]
    assert chosen_right(notes, cell, ISLANDS, 2) == pytest.approx(0.5)


def row(rule: str, bpb: float | None, attack: str | None = "ALIE") -> dict[str, object]:
    cell = Cell(rule=rule, attack=attack, attackers=0 if attack is None else 2, split="iid", seed=0)
    return {
        **dataclasses.asdict(cell), "val_bpb": bpb, "chosen_right": None, "seconds_per_round": 0.1, "bytes_sent": 1,
        "rounds": 16, "failure": "not finite" if bpb is None else None,
    }  # fmt: skip


def test_losses_are_told_over_the_clean_mean_and_what_is_missing_is_said() -> None:
    rows = with_success(
        [
            row("gate", 4.0, None),
            row("gate", None),
            row("median", 5.0),
            row("median", 4.4, "replay"),
            row(HONEST, 4.1, LEFT_OUT),
        ]
    )
    assert [r["attack_success"] for r in rows] == pytest.approx([0, 1, 0.25, 0.1, 0.025])
    result = {"rows": rows, "command": "c", "hardware": {"cpu": "x"}, "created": "2026-01-01T00"}
    table = robust_table(result, 9)
    assert "| gate | +0.0% | the run ends | - |" in table
    assert "| median | - | +25.0% | +10.0% |" in table
    assert "The mean of the honest alone: +2.5%." in table
    assert "5 of 9 runs are done; a dash is one that is not" in table
