"""Plans of faults: drawn from a seed, read from files, refused with the reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lowcomm.chaos.kinds import KINDS, PHASES, pairs
from lowcomm.chaos.plan import FIRST_ROUND, LAST_ROUNDS, Fault, Plan, as_json, draw, read_plan
from lowcomm.cli import main
from lowcomm.types import ConfigError


def drawn(seed: int) -> Plan:
    return draw(seed, 200, islands=3, rounds=26, per_run=8, for_s=2.0)


def one_line(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Fix: " in said, said
    assert all(word in said for word in words), said


def test_a_draw_follows_from_its_seed_and_has_every_fault_in_every_phase() -> None:
    plan = drawn(3)
    assert plan == drawn(3) != drawn(4)
    plan.check(3, 26)
    assert {f.fault for f in plan.faults[: len(KINDS)]} == set(KINDS), "each one before any comes again"
    counts = Counter((f.fault, f.phase) for f in plan.faults)
    assert set(counts) == set(pairs()) and max(counts.values()) - min(counts.values()) <= 1
    assert plan.runs == 25 and all(FIRST_ROUND <= f.round <= 26 - LAST_ROUNDS for f in plan.faults)
    rounds = [f.round for f in plan.faults if f.run == 0]
    assert rounds == sorted(set(rounds)), "one after the other"


def test_every_fault_has_phases_that_there_are() -> None:
    assert all(set(kind.phases) <= set(PHASES) and kind.phases for kind in KINDS.values())
    assert {phase for _, phase in pairs()} == set(PHASES)


@pytest.mark.parametrize("end", ["json", "toml"])
def test_a_plan_is_read_as_it_was_written(tmp_path: Path, end: str) -> None:
    plan = Plan(faults=(Fault(fault="kill", phase="encode", round=4, island=1),), seed=7)
    path = tmp_path / f"plan.{end}"
    toml = 'seed = 7\n[[faults]]\nround = 4\nphase = "encode"\nisland = 1\nfault = "kill"\n'
    path.write_text(json.dumps(as_json(plan)) if end == "json" else toml, encoding="utf-8")
    assert read_plan(path) == plan


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fault": "fly"}, ["faults[0].fault", "fly", "kill"]),
        ({"phase": "night"}, ["faults[0].phase", "night", "encode"]),
        ({"fault": "corrupt"}, ["faults[0].phase", "upload"]),
        ({"round": 1}, ["faults[0].round", "3 to 22"]),
        ({"round": 23}, ["faults[0].round", "3 to 22"]),
        ({"island": 3}, ["faults[0].island", "0 to 2"]),
        ({"for_s": 0}, ["faults[0].for_s", "seconds"]),
        ({"run": -1}, ["faults[0].run", "0 to 999"]),
        ({"round": "4"}, ["faults[0].round", "number"]),
        ({"speed": 4}, ["faults[0]", "fields"]),
    ],
)
def test_a_fault_that_can_not_come_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: list[str]
) -> None:
    row = {"round": 4, "phase": "encode", "island": 1, "fault": "kill", **changes}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"faults": [row]}), encoding="utf-8")
    assert main(["chaos", str(path), "--out", str(tmp_path / "out")]) == 2
    one_line(capsys, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"faults": 3}', '{"faults": [], "more": 1}', '{"faults": [3]}'])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        read_plan(path)
    with pytest.raises(ConfigError):
        read_plan(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--faults", "0"], ["--faults", "1 to 10000"]),
        (["--per-run", "90"], ["--per-run", "1 to 19"]),
        (["--only", "kill,fly"], ["--only", "fly"]),
        (["--steps", "8"], ["steps", "8 rounds"]),
        (["--islands", "1"], ["islands", "2 or more"]),
        (["--island.size", "2"], ["island.size"]),
        (["--store", "s3://bucket/run", "--only", "damage"], ["damage", "bucket"]),
    ],
)
def test_flags_out_of_range_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    assert main(["chaos", *arguments, "--out", str(tmp_path / "out")]) == 2
    one_line(capsys, *words)
    assert not (tmp_path / "out").exists()
