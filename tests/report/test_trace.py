"""What each island did when: lanes that never overlap, the trace that Perfetto reads, rates and the plots of them."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowcomm.cli import main
from lowcomm.report.bandwidth import bandwidth_figures, link_use
from lowcomm.report.lanes import Slice, lanes_of
from lowcomm.report.load import Run, load_run
from lowcomm.report.method import method_of
from lowcomm.report.timeline import timeline_figures
from lowcomm.report.trace import trace, write_trace
from lowcomm.types import ConfigError
from tests.report.test_report import make_run
from tests.support import runs


def check_trace(value: dict[str, Any]) -> None:
    """The trace event format, as Perfetto and chrome://tracing read it: the phases used here."""
    assert set(value) == {"traceEvents", "displayTimeUnit"}
    ends: dict[tuple[int, int], int] = {}
    names: dict[tuple[int, int, str], str] = {}
    for event in value["traceEvents"]:
        assert isinstance(event["name"], str) and event["name"]
        assert all(type(event[key]) is int for key in ("pid", "tid", "ts")) and event["ts"] >= 0
        assert event["ph"] in ("X", "M", "C")
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "process_sort_index", "thread_name")
            names[event["pid"], event["tid"], event["name"]] = str(next(iter(event["args"].values())))
        elif event["ph"] == "C":
            assert all(isinstance(v, int | float) and math.isfinite(v) for v in event["args"].values())
        else:
            assert type(event["dur"]) is int and event["dur"] > 0
            lane = (event["pid"], event["tid"])
            assert event["ts"] >= ends.get(lane, 0), "slices of a lane overlap or are out of order"
            ends[lane] = event["ts"] + event["dur"]
            assert names[(*lane, "thread_name")] in ("compute", "link")
            assert (event["pid"], event["pid"], "process_name") in names
            main_thread = event["tid"] == event["pid"]
            assert main_thread is (names[(*lane, "thread_name")] == "compute"), "Perfetto would list the link first"
    assert ends
    lanes = [(pid, tid) for pid, tid, name in names if name == "thread_name"]
    assert len({tid for _, tid in lanes}) == len(lanes), "some importers find a thread by its number alone"


def slices(value: dict[str, Any], lane: str) -> list[dict[str, Any]]:
    lanes = {e["tid"] for e in value["traceEvents"] if e["name"] == "thread_name" and e["args"]["name"] == lane}
    return [e for e in value["traceEvents"] if e["ph"] == "X" and e["tid"] in lanes]


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, two fragments in turn, each one step on its way, evaluated on the way; a wire of 20 ms."""
    root = tmp_path_factory.mktemp("trace")
    recipe = runs.write_recipe(root, runs.write_corpus(root))
    flags = ["--transport", "collective", "--run-dir", str(root / "run"), "--log-every", "3", "--eval.every", "6"]
    arguments = ["train", f"{recipe}:streaming", *flags]
    started = [runs.start(runs.late_main, (arguments, 0.02), root / "log", v) for v in runs.islands_environment(2)]
    assert [runs.wait(child, root / "log") for child in started] == [0, 0], (root / "log").read_text()
    return root / "run"


def test_trace_of_two_processes(streamed: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "trace.json"
    assert main(["report", str(streamed), "--out", str(tmp_path / "r.html"), "--trace", str(out)]) == 0
    value = json.loads(out.read_text(encoding="utf-8"))
    check_trace(value)
    named = {e["pid"]: e["args"]["name"] for e in value["traceEvents"] if e["name"] == "process_name"}
    assert named == {10: "island 0", 20: "island 1"}
    syncs = load_run(streamed).of("sync")
    transfers = [e for e in slices(value, "link") if e["cat"] == "transfer"]
    assert len(transfers) == len(syncs)
    for event in transfers:
        assert event["args"]["codec"] == "Fp32" and {"bytes", "fragment", "round", "step"} <= set(event["args"])
        assert event["args"]["fragment"] in (0, 1) and event["dur"] >= 20_000
    counted = runs.summary(streamed)["bytes_sent"]
    for pid in named:
        carried = sum(e["args"]["bytes"] for e in transfers if e["pid"] == pid)
        assert 0.99 * counted < carried <= counted  # the rest: handshake, digests, evaluation
    assert {e["cat"] for e in slices(value, "compute")} >= {"training", "blocked", "evaluation"}


def test_overlap_is_visible_and_clocks_agree(streamed: Path) -> None:
    """Training goes on while the link is busy; an exchange ends on both islands at about the same time."""
    run = load_run(streamed)
    lanes = lanes_of(run)
    beside = [
        min(a.end_s, b.end_s) - max(a.start_s, b.start_s)
        for lane in lanes.values()
        for a in lane.compute
        for b in lane.link
        if a.kind == "training"
    ]
    assert sum(x for x in beside if x > 0) > 0.01
    ends: dict[int, list[float]] = {}
    for event in run.of("sync"):
        ends.setdefault(event["round"], []).append(event["start_s"] + event["exchange_s"])
    assert all(len(pair) == 2 and abs(pair[0] - pair[1]) < 0.15 for pair in ends.values()), ends
    for event in run.of("sync"):
        assert 0 <= event["transfer_s"] <= event["exchange_s"] and event["exchanged_bytes"] > 0
        if event["launched_s"] is not None:
            assert event["launched_s"] <= event["start_s"] <= event["time_s"]
            assert event["launch_s"] <= event["blocked_s"]


def test_blocked_time_of_the_trace_is_that_of_the_summary(streamed: Path) -> None:
    lanes, summary = lanes_of(load_run(streamed)), runs.summary(streamed)
    waiting = [sum(s.end_s - s.start_s for s in v.compute if s.kind in ("blocked", "late")) for v in lanes.values()]
    assert sum(waiting) / len(waiting) == pytest.approx(summary["blocked_s"], rel=0.1, abs=0.02)


def test_peak_rate_and_link_rate(streamed: Path) -> None:
    run = load_run(streamed)
    use = link_use(run)
    assert use.peak_bytes_per_s == runs.summary(streamed)["peak_bytes_per_s"]
    largest = max(event["exchanged_bytes"] for event in run.of("sync"))
    assert use.peak_bytes_per_s is not None and use.peak_bytes_per_s > largest / 5
    live = link_use(Run(**{**vars(run), "summary": {}}))  # from the events
    assert live.peak_bytes_per_s == use.peak_bytes_per_s
    assert use.link_bytes_per_s is None or use.link_bytes_per_s > largest
    assert link_use(load_run(streamed)).misses == len(run.of("deadline"))


def test_older_runs_have_lanes_too(tmp_path: Path) -> None:
    """Their lines say when a sync ended, how long it was, and how long of it blocked."""
    run = load_run(make_run(tmp_path / "a", islands=2, rounds=3, sync_s=0.4, overlap=0.75))
    value = trace([run])
    check_trace(value)
    ends_s = [e["time_s"] for e in run.of("sync") if e["island"] == 1]
    lanes = lanes_of(run)[1]
    assert [s.end_s for s in lanes.link] == ends_s
    assert [round(s.end_s - s.start_s, 6) for s in lanes.compute if s.kind == "blocked"] == [0.1] * 3
    assert link_use(run).peak_bytes_per_s is None


NUMBER = st.one_of(st.none(), st.floats(-1, 20))
TIMES = (
    *("time_s", "sync_s", "blocked_s", "launched_s", "launch_s", "start_s", "exchange_s", "transfer_s", "waited_s"),
    *("step", "round", "fragment"),
)
EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "event": st.sampled_from(("step", "sync", "eval", "deadline", "note")),
            "island": st.sampled_from((None, 0, 1)),
            **dict.fromkeys(TIMES, NUMBER),
        }
    ),
    max_size=25,
)


@given(events=EVENTS)
def test_lanes_never_overlap_whatever_the_lines_say(events: list[dict[str, Any]]) -> None:
    run = Run(
        path=Path(), name="r", status="done", config={}, environment={}, summary={}, clients={}, partition={},
        events=tuple(events), torn=False, unreadable_lines=0, influence={},
    )  # fmt: skip
    for lanes in lanes_of(run).values():
        for lane in (lanes.compute, lanes.link):
            assert all(s.end_s > s.start_s for s in lane)
            assert all(a.end_s <= b.start_s for a, b in pairwise(lane))
    value = trace([run])
    assert json.dumps(value, allow_nan=False)
    if slices(value, "compute"):
        check_trace(value)
    timeline_figures([run], ["r"])


def test_a_resumed_run_is_drawn_once(tmp_path: Path) -> None:
    """A crash after 4 s, resumed from a checkpoint at 2 s: what came in between is undone."""
    path = make_run(tmp_path / "a", islands=1, rounds=1)
    again = [(1.0, 1), (2.0, 2), (3.0, 3), (4.0, 4), (2.5, 3), (3.5, 4)]
    lines = [
        {"event": "sync", "island": 0, "round": r, "time_s": t, "sync_s": 0.25, "blocked_s": 0.25} for t, r in again
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    link = lanes_of(load_run(path))[0].link
    assert [(s.end_s, (s.event or {})["round"]) for s in link] == [(1.0, 1), (2.0, 2), (2.5, 3), (3.5, 4)]


def test_late_waits_stand_out_of_blocked_time(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", islands=1, rounds=1)
    lines = [
        {"event": "deadline", "island": 0, "round": 0, "time_s": 3.0, "waited_s": 0.75, "cause": "slow link",
         "note": "why"},
        {"event": "sync", "island": 0, "round": 0, "time_s": 3.25, "sync_s": 2.0, "blocked_s": 1.25, "launched_s": 1.0,
         "launch_s": 0.25, "start_s": 1.25, "exchange_s": 1.75, "transfer_s": 1.5, "exchanged_bytes": 100,
         "fragment": 0, "needed_bytes_per_s": 100.0},
    ]  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = load_run(path)
    lanes = lanes_of(run)[0]

    def spans(found: list[Slice]) -> list[tuple[str, float, float]]:
        return [(s.kind, s.start_s, s.end_s) for s in found]

    assert spans(lanes.compute) == [
        ("training", 0.0, 1.0), ("blocked", 1.0, 1.25), ("training", 1.25, 2.25), ("late", 2.25, 3.0),
        ("blocked", 3.0, 3.25),
    ]  # fmt: skip
    assert spans(lanes.link) == [("roll call", 1.25, 1.5), ("transfer", 1.5, 3.0)]
    (late,) = [e for e in slices(trace([run]), "compute") if e["cat"] == "late"]
    assert late["args"] == {"round": 0, "cause": "slow link", "why": "why"}
    assert run.summary["status"] == "done"


def at_rate(path: Path, rate: float | None, schedule: str, utilisation: float) -> Run:
    run_dir = make_run(path, name=path.name, rounds=1)
    config = json.loads((run_dir / "config.json").read_text())
    config["sync"] |= {"schedule": {"type": f"lowcomm.schedule.x.{schedule}", "delay": 5}, "codec": {
        "type": "lowcomm.codec.x.ErrorFeedback", "codec": {"type": "lowcomm.codec.x.Int4", "block": 256}}}  # fmt: skip
    (run_dir / "config.json").write_text(json.dumps(config))
    summary = json.loads((run_dir / "summary.json").read_text())
    summary |= {"link_bytes_per_s": rate, "utilisation": utilisation}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    return load_run(run_dir)


def test_utilisation_against_bandwidth_per_method(tmp_path: Path) -> None:
    slow, fast = (at_rate(tmp_path / n, r, "Streaming", u) for n, r, u in (("a", 1e6, 0.9), ("b", 1e8, 0.99)))
    other, simulated = at_rate(tmp_path / "c", 1e6, "EveryH", 0.4), at_rate(tmp_path / "d", None, "EveryH", 1.0)
    found = [fast, slow, other, simulated]
    (figure,) = bandwidth_figures(found, ["b", "a", "c", "d"])
    lines = {trace["name"]: (trace["x"], trace["y"]) for trace in figure.spec["data"]}
    assert lines == {
        "Streaming (delay 5), ErrorFeedback(Int4), H = 32": ([8e6, 8e8], [0.9, 0.99]),
        "EveryH (delay 5), ErrorFeedback(Int4), H = 32": ([8e6], [0.4]),
    }
    assert "left out, with no measured link: 1" in figure.caption
    assert bandwidth_figures([slow], ["a"]) == []
    assert method_of(load_run(make_run(tmp_path / "e", rounds=1))).label == "?, ?, H = 32"


def test_trace_that_cannot_be_written(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", rounds=1)
    with pytest.raises(ConfigError, match=re.escape("cannot be written")):
        write_trace([path], path / "config.json" / "t.json")


def test_averaged_gradients_are_waits_too(tmp_path: Path) -> None:
    """Else a data-parallel run would look as if it only trained."""
    recipe = runs.write_recipe(tmp_path, runs.write_corpus(tmp_path))
    directory = tmp_path / "run"
    assert main(["simulate", f"{recipe}:ddp", "--run-dir", str(directory), "--log-every", "4"]) == 0
    run = load_run(directory)
    for lanes in lanes_of(run).values():
        waited_s = sum(s.end_s - s.start_s for s in lanes.compute if s.kind == "blocked")
        assert waited_s == pytest.approx(run.summary["blocked_s"], rel=0.2, abs=0.005)
    assert any(e["name"].startswith("gradients, sum") for e in slices(trace([run]), "compute"))
    (figure,) = timeline_figures([run], ["r"])
    assert "averaged gradients" in figure.caption
    assert figure.spec["layout"]["yaxis"]["categoryarray"] == ["0 compute", "1 compute"]  # no link to show
