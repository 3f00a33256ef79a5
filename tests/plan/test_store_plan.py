"""The planner of runs over a store: what it counts is what is counted, and its answers follow link and price."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from lowcomm.cli import main
from lowcomm.plan import store as planned
from lowcomm.plan.codecs import CODECS, FP32, INT4, TOP_K
from lowcomm.plan.runtime import Job
from lowcomm.plan.store import Prices, StoreLink, over_store, store_round
from lowcomm.store import objects
from lowcomm.store.directory import DirectoryObjects

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
JOB = Job(parameters=1_000_000_000, islands=8, step_s=2.0, steps=10_000)
LINK = StoreLink(rate_bytes_per_s=12.5e6, rtt_s=0.05)


def rows(name: str) -> list[dict[str, object]]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]


def test_its_constants_are_those_of_the_store(tmp_path: Path) -> None:
    assert planned.PART_BYTES == objects.PART_BYTES
    assert objects.Objects.poll_first_s == planned.POLL_S
    assert DirectoryObjects(tmp_path).poll_first_s == planned.DIRECTORY_POLL_S


@pytest.mark.parametrize("scenario", ["round_2", "round_4"])
def test_bytes_are_within_15_percent_of_measured_rounds(scenario: str) -> None:
    """Rounds over a directory, medians: those without a snapshot."""
    (row,) = [r for r in rows("store") if r["scenario"] == scenario]
    job = Job(parameters=int(str(row["parameters"])), islands=int(str(row["islands"])), step_s=1.0, steps=16)
    found = store_round(job, LINK, INT4, 2, Prices())
    assert found.up_bytes - found.snapshot_bytes == pytest.approx(row["store_sent_bytes"], rel=0.15)
    assert found.down_bytes == pytest.approx(row["store_received_bytes"], rel=0.15)


def test_requests_are_those_of_a_measured_round() -> None:
    (row,) = [r for r in rows("store") if r["scenario"] == "requests"]
    job = Job(parameters=int(str(row["parameters"])), islands=int(str(row["members"])), step_s=1.0, steps=64)
    assert store_round(job, LINK, INT4, 8, Prices()).requests == pytest.approx(row["requests_mean"], rel=0.15)


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name)
def test_it_agrees_with_the_table_of_costs(codec: object) -> None:
    """That one bounds requests; bytes and dollars of egress are the same but for headers."""
    (row,) = [r for r in rows("store_cost") if r["codec"] == codec.name]  # pyright: ignore[reportAttributeAccessIssue]
    found = store_round(JOB, LINK, codec, 300, Prices(per_thousand_requests=0.0))  # pyright: ignore[reportArgumentType]
    assert found.down_bytes == pytest.approx(row["down_bytes"], rel=1e-3)
    assert found.up_bytes - found.snapshot_bytes == pytest.approx(row["up_bytes"], rel=1e-3)
    assert found.requests <= float(str(row["requests"]))
    per_round = found.dollars / (JOB.steps / 300)
    assert per_round * 144 == pytest.approx(row["internet_dollars_per_day"], rel=1e-3)


def test_seconds_follow_the_link_and_money_the_bytes() -> None:
    slow = store_round(JOB, LINK, INT4, 100, Prices())
    fast = store_round(JOB, dataclasses.replace(LINK, rate_bytes_per_s=1.25e9), INT4, 100, Prices())
    shared = store_round(JOB, dataclasses.replace(LINK, shared_bytes_per_s=12.5e6), INT4, 100, Prices())
    assert fast.blocked_s < slow.blocked_s < shared.blocked_s
    assert shared.blocked_s == pytest.approx(8 * slow.blocked_s, rel=0.25), "eight members share what each had"
    assert fast.dollars == slow.dollars and fast.dollars_per_day > slow.dollars_per_day
    free = store_round(JOB, LINK, INT4, 100, Prices(per_gb=0.0, per_thousand_requests=0.0))
    assert free.dollars == free.dollars_per_day == 0
    assert store_round(JOB, LINK, TOP_K, 100, Prices()).dollars < slow.dollars / 10


def test_snapshots_go_up_when_commits_outgrow_them_or_time_is_over() -> None:
    by_bytes = store_round(JOB, LINK, FP32, 100, Prices(), snapshot_s=1e9)
    assert by_bytes.snapshot_bytes == pytest.approx(8e9 / 8, rel=1e-3), (
        "eight times 4 GB are more than 8 GB: each round"
    )
    by_time = store_round(JOB, LINK, TOP_K, 100, Prices(), snapshot_s=1.0)
    assert by_time.snapshot_bytes == pytest.approx(8e9 / 8)
    seldom = store_round(JOB, LINK, TOP_K, 100, Prices(), snapshot_s=1e9)
    assert seldom.snapshot_bytes < by_time.snapshot_bytes / 40


def test_the_shortest_round_that_reaches_the_goal() -> None:
    found = over_store(JOB, LINK, Prices(), CODECS, goal=0.9)
    assert [r.utilisation >= 0.9 for r in found] == sorted([r.utilisation >= 0.9 for r in found], reverse=True)
    for r in found:
        shorter = store_round(JOB, LINK, r.codec, r.every // 2, Prices())
        assert shorter.utilisation < max(0.9, r.utilisation)
    (fixed,) = over_store(JOB, LINK, Prices(), [INT4], goal=0.9, every=50)
    assert fixed.every == 50


CALL = ["plan", "--parameters", "1e9", "--islands", "8", "--step-s", "2", "--store-rate", "1000"]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CALL, "--store-rtt-ms", "30", "--store-price", "0.02"]) == 0
    said = capsys.readouterr().out
    assert "plan over a store: a round of" in said and "$" in said and "requests" in said
    assert all(name in said for name in ("fp32", "int8", "int4", "two_bit"))
    for flags, word in (
        (["--rate-mbit", "100"], "the link"),
        (["--store-price", "-1"], "--store-price"),
        (["--store-shared-rate", "0"], "--store-shared-rate"),
        (["--recipe", "plan_of_a_store.py"], "--recipe"),
    ):
        assert main([*CALL, *flags]) == 2
        line = capsys.readouterr().err
        assert word in line and "Fix: " in line and line.count("\n") == 1
