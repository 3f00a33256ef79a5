"""The oracle sees what it is there for: made-up records of runs in which something is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowcomm.chaos.oracle import Finding, judge
from lowcomm.chaos.plan import Fault
from lowcomm.chaos.processes import Process
from lowcomm.chaos.rows import rows_of
from lowcomm.chaos.running import Outcome

FAULT = Fault(fault="kill", phase="encode", round=3, island=1)
Change = Callable[[Outcome, list[list[dict[str, Any]]]], None]


def made(tmp_path: Path, change: Change) -> Outcome:
    """Three processes of two islands, one killed and started again; four commits with two blocks each."""
    lines: list[list[dict[str, Any]]] = [
        [_line(v, 1.0 * v) for v in range(1, 5)],
        [_line(v, 1.0 * v + 0.1) for v in range(1, 3)],
        [*(_line(v, 1.0 * v + 0.2) for v in range(3, 5)), {"event": "mine", "version": 4, "at": 3.3}],
    ]
    processes = [_process(tmp_path, number, island) for number, island in enumerate((0, 1, 1))]
    processes[1].code, processes[1].legal = -9, {0, -9}
    event = {"at": 2.2, "island": 1, "version": 3, "pid": processes[1].pid}
    outcome = Outcome(processes=processes, events={0: event}, verified=True)
    change(outcome, lines)
    for process, found in zip(outcome.processes, lines, strict=True):
        process.record.write_text("".join(json.dumps(line) + "\n" for line in found), encoding="utf-8")
    return outcome


def _line(version: int, at: float) -> dict[str, Any]:
    blocks = [2 * version - 2, 2 * version - 1]
    return {"event": "version", "version": version, "digest": f"d{version}", "blocks": blocks, "used": 2, "at": at}


def _process(tmp_path: Path, number: int, island: int) -> Process:
    directory = tmp_path / f"island-{number}"
    directory.mkdir()
    (directory / "summary.json").write_text(json.dumps({"weights_sha256": "w", "val_loss": 2.0}), encoding="utf-8")
    log, stacks, record = (tmp_path / f"{number}.{end}" for end in ("log", "stacks", "record"))
    log.write_text("the last line\n", encoding="utf-8")
    return Process(
        name=f"island-{island}", island=island, pid=number + 1, directory=directory, code=0, log=log, stacks=stacks,
        record=record,
    )  # fmt: skip


def found(tmp_path: Path, change: Change, calm_loss: float = 2.0) -> Finding:
    return judge(made(tmp_path, change), (FAULT,), 8, calm_loss)


def test_a_run_in_which_all_holds_passes(tmp_path: Path) -> None:
    outcome = made(tmp_path, lambda outcome, lines: None)
    finding = judge(outcome, (FAULT,), 8, 1.99)
    assert finding.failures == () and finding.replicas_equal and finding.rounds_lost == 0
    assert finding.loss_change == pytest.approx(2.0 / 1.99 - 1)
    row = rows_of(outcome, (FAULT,), finding, 1.0, "store (directory)")[0]
    assert row["survived"] and row["recovery_s"] == pytest.approx(1.1) and row["stall_s"] == 0.0


def fork(outcome: Outcome, lines: list[list[dict[str, Any]]]) -> None:
    lines[2][0]["digest"] = "other"


def lose_a_block(outcome: Outcome, lines: list[list[dict[str, Any]]]) -> None:
    for found in lines:
        for line in found:
            if line.get("version") == 4:
                line["blocks"] = [6]


def double_a_block(outcome: Outcome, lines: list[list[dict[str, Any]]]) -> None:
    for found in lines:
        for line in found:
            if line.get("version") == 4:
                line["blocks"] = [0, 6, 7]


def other_weights(outcome: Outcome, lines: list[list[dict[str, Any]]]) -> None:
    path = outcome.processes[0].directory / "summary.json"
    path.write_text(json.dumps({"weights_sha256": "x", "val_loss": 2.0}), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fork, "version 3 has the digests d3"),
        (lose_a_block, "1 blocks are in no commit: [7]"),
        (double_a_block, "1 blocks are in several commits: [0]"),
        (other_weights, "2 different weights at the end"),
        (lambda o, _: setattr(o, "hung", "island-0 (stacks)"), "a hang of island-0"),
        (lambda o, _: setattr(o, "verified", False), "the chain is not whole"),
        (lambda o, _: o.events.clear(), "fault 0 (kill in encode from version 3 on) did not come"),
        (lambda o, _: setattr(o.processes[2], "code", 1), "island-1 ended with 1: the last line"),
        (lambda o, _: [setattr(p, "code", -9) for p in o.processes], "no island saw the run's end"),
    ],
)
def test_it_sees_what_is_wrong(tmp_path: Path, change: Change, words: str) -> None:
    finding = found(tmp_path, change)
    assert any(words in line for line in finding.failures), finding.failures


def test_it_sees_a_loss_that_is_more_than_one_percent_above(tmp_path: Path) -> None:
    finding = found(tmp_path, lambda outcome, lines: None, calm_loss=1.97)
    assert len(finding.failures) == 1 and "the final loss 2.0000 is +1.52%" in finding.failures[0]
