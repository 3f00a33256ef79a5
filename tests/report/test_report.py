"""The report: reading run directories, the numbers, the page, and the page in a real browser."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lowcomm.report.figures import curve_figures, plot_label
from lowcomm.report.html import embedded_json, write_report
from lowcomm.report.load import load_run, number
from lowcomm.report.partition import client_table, partition_figures
from lowcomm.report.sections import flatten
from lowcomm.report.series import eval_curve, headline, island_rows, labels, thin, train_curves, warnings_of
from lowcomm.report.table import summary_table
from lowcomm.report.timeline import timeline_figures
from lowcomm.report.units import format_bytes, format_count, format_seconds
from lowcomm.types import ConfigError

KEYS = [
    *("event", "island", "round", "step", "tokens", "loss", "val_loss", "val_bpb", "bytes_sent"),
    *("bytes_received", "step_s", "sync_s", "blocked_s", "lr", "grad_norm", "delta_norm", "note", "time_s"),
]
EVIL = "<script>alert(1)</script>"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
TOKENS_PER_STEP = 512


def line(event: str, **values: Any) -> str:
    assert set(values) <= set(KEYS)
    return json.dumps(dict.fromkeys(KEYS) | {"event": event} | values)


def events(islands: int, every: int, rounds: int, sync_s: float, overlap: float, speed: float) -> list[str]:
    """A plausible run: loss falls with tokens, a sync every `every` steps, `overlap` of it hidden."""
    lines, time_s, sent = [], 0.0, 0
    for index in range(rounds):
        for step in range(index * every, (index + 1) * every):
            time_s += 0.02
            if step % 8 == 0:
                for i in range(islands):
                    noise = 0.08 * math.sin(step * (1.7 + i) + i)
                    loss = 1.6 + 3.9 / (1 + speed * step / 60) + noise
                    lines.append(
                        line(
                            "step", island=i, round=index, step=step + 1, tokens=(step + 1) * TOKENS_PER_STEP,
                            loss=loss, bytes_sent=sent, bytes_received=sent, step_s=0.02 + 0.002 * i, lr=1e-3,
                            grad_norm=1.0, time_s=time_s,
                        )
                    )  # fmt: skip
        step = (index + 1) * every
        time_s += sync_s * (1 - overlap)
        sent += 480_000
        for i in range(islands):
            lines.append(
                line(
                    "sync", island=i, round=index, step=step, tokens=step * TOKENS_PER_STEP, bytes_sent=sent,
                    bytes_received=sent, sync_s=sync_s, blocked_s=sync_s * (1 - overlap),
                    delta_norm=0.5 / (1 + index), time_s=time_s,
                )
            )  # fmt: skip
        if index % 2 == 1 or index == rounds - 1:
            val_loss = 1.65 + 3.9 / (1 + speed * step / 60)
            lines.append(
                line(
                    "eval", round=index, step=step, tokens=step * TOKENS_PER_STEP * islands, val_loss=val_loss,
                    val_bpb=val_loss / math.log(2), bytes_sent=sent, bytes_received=sent, time_s=time_s,
                )
            )  # fmt: skip
    return lines


def make_run(
    path: Path,
    *,
    name: str = "diloco",
    islands: int = 4,
    every: int = 32,
    rounds: int = 20,
    sync_s: float = 0.3,
    overlap: float = 0.0,
    speed: float = 1.0,
    status: str | None = "done",
    tail: str = "",
) -> Path:
    """A run directory by the contract; `status` None leaves the summary out, `tail` ends metrics.jsonl."""
    path.mkdir(parents=True)
    config = {
        "type": "RunConfig", "name": name, "seed": 7, "islands": islands,
        "sync": {"type": "DiLoCo", "every": every, "outer": {"type": "Nesterov", "lr": 0.7, "momentum": 0.9}},
        "model": {"preset": "nano", "layers": 2}, "betas": [0.9, 0.95],
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    environment = {
        "versions": {"python": "3.11.9", "torch": "2.13.0"}, "commit": "4b4a65e", "interfaces": ["lo", "eth0"],
        "hardware": {"cpu": "a processor", "cores": 2}, "command": "lowcomm train recipes/diloco.py:smoke",
    }  # fmt: skip
    (path / "environment.json").write_text(json.dumps(environment))
    lines = events(islands, every, rounds, sync_s, overlap, speed)
    lines.append(line("note", island=1, round=2, note=f"contribution dropped: {EVIL}", time_s=3.5))
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n" + tail)
    if status is not None:
        last = [json.loads(text) for text in lines if '"eval"' in text][-1]
        wall_s = last["time_s"] + 0.5
        blocked_s = rounds * sync_s * (1 - overlap)
        summary = {
            "status": status, "name": name, "parameters": 120_448, "parameters_trainable": 120_448,
            "val_loss": last["val_loss"], "val_bpb": last["val_bpb"], "tokens": last["tokens"],
            "steps": rounds * every, "rounds": rounds, "islands": islands, "bytes_sent": last["bytes_sent"],
            "bytes_received": last["bytes_received"], "wall_s": wall_s, "blocked_s": blocked_s,
            "sync_s": rounds * sync_s, "utilisation": 1 - blocked_s / wall_s, "weights_sha256": "0" * 64,
        }  # fmt: skip
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def three_runs(root: Path) -> list[Path]:
    """A baseline that syncs at every step, a run that is still going with a torn line, and a hostile name."""
    torn = line("step", island=0, step=9999, loss=1.0)[:40]
    return [
        make_run(root / "ddp", name="ddp", every=1, rounds=640, sync_s=0.012, speed=1.05),
        make_run(root / "live", name="diloco H=32", status=None, rounds=14, tail=torn),
        make_run(root / "evil", name=EVIL, overlap=0.7, every=64, rounds=10, speed=0.9),
    ]


def write_partition(path: Path, labels: int) -> Path:
    """Two clients, the first with 1, 2, 3 ... rows of each label, the second with one row of the first one."""
    names = [EVIL, *(f"site {i}" for i in range(1, labels))]
    first = {name: i + 1 for i, name in enumerate(names)}
    clients = [
        {"client": k, "train_rows": sum(rows.values()), "validation_rows": 2, "train_bytes": 9000, "train_labels": rows}
        for k, rows in enumerate((first, {EVIL: 1}))
    ]
    table = {"partition": f"Dirichlet({EVIL})", "duplicates_removed": 3, "clients": [*clients, "torn"]}
    (path / "partition.json").write_text(json.dumps(table))
    return path


def test_clients_are_drawn_with_all_their_rows(tmp_path: Path) -> None:
    run = load_run(write_partition(make_run(tmp_path / "a"), 12))
    (figure,) = partition_figures([run], ["a"])
    assert [sum(trace["y"][k] for trace in figure.spec["data"]) for k in (0, 1)] == [78, 1]
    assert len(figure.spec["data"]) == 8 and figure.spec["data"][-1]["name"] == "other labels (5)"
    assert "3 equal texts" in figure.caption
    few = partition_figures([load_run(write_partition(make_run(tmp_path / "b"), 3))], ["b"])[0]
    assert [trace["name"] for trace in few.spec["data"]] == [plot_label(EVIL), "site 1", "site 2"]
    page = write_report([tmp_path / "a"]).read_text(encoding="utf-8")
    assert "<h2>Clients</h2>" in page and "site 11, 15.4 %" in page and EVIL not in page.split("<script")[0]
    assert EVIL not in client_table([run], ["a"])


def test_runs_without_clients_have_no_section(tmp_path: Path) -> None:
    page = write_report([make_run(tmp_path / "a")]).read_text(encoding="utf-8")
    assert "<h2>Clients</h2>" not in page
    (make_run(tmp_path / "b") / "partition.json").write_text('{"clients": 3}')
    assert "<h2>Clients</h2>" not in write_report([tmp_path / "b"]).read_text(encoding="utf-8")


# --- reading -----------------------------------------------------------------------------------------


def test_load_finished_run(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "a"))
    assert (run.name, run.status, run.torn, run.unreadable_lines) == ("diloco", "done", False, 0)
    assert len(run.of("sync")) == 4 * 20
    assert run.environment["commit"] == "4b4a65e"
    assert warnings_of(run) == []


def test_load_running_run_takes_the_name_of_the_configuration(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "a", name="live", status=None))
    assert (run.name, run.status, run.summary) == ("live", "running", {})


@pytest.mark.parametrize("missing", ["config.json", "metrics.jsonl"])
def test_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    path = make_run(tmp_path / "a")
    (path / missing).unlink()
    with pytest.raises(ConfigError, match=re.escape(missing)) as caught:
        load_run(path)
    assert "\n" not in str(caught.value)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a directory"):
        load_run(tmp_path / "nothing")


@pytest.mark.parametrize("content", ["[1]", "{", "", "\xff"])
def test_damaged_config_is_named(tmp_path: Path, content: str) -> None:
    path = make_run(tmp_path / "a")
    (path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_run(path)


def test_file_that_holds_no_events(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    (path / "metrics.jsonl").write_text("step,loss\n1,2\n")
    with pytest.raises(ConfigError, match="no JSON line"):
        load_run(path)


@given(cut=st.integers(1, 300))
def test_torn_anywhere(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """A crash cuts the last line at any byte, also inside a character."""
    path = make_run(tmp_path_factory.mktemp("torn") / "a", rounds=2)
    whole = (path / "metrics.jsonl").read_bytes()
    last = line("note", island=0, note="é" * 80, time_s=9.0).replace("\\u00e9", "é").encode()
    (path / "metrics.jsonl").write_bytes(whole + last[: min(cut, len(last) - 1)])
    run = load_run(path)
    assert run.torn
    assert len(run.events) == whole.count(b"\n")
    assert any("cut short" in warning for warning in warnings_of(run))


def test_damage_before_the_end_is_counted(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", status="failed")
    text = (path / "metrics.jsonl").read_text()
    damaged = f'{{"event": "st{text}[]\n{line("step", island=0, step=9999, loss=math.nan)}\n'
    (path / "metrics.jsonl").write_text(damaged)
    run = load_run(path)
    assert run.unreadable_lines == 2
    assert warnings_of(run) == [
        "the run failed",
        "1 logged training losses were not finite and are left out",
        "2 lines of metrics.jsonl could not be read and are left out",
    ]
    assert 9999 * TOKENS_PER_STEP not in train_curves(run)[0].tokens


@pytest.mark.parametrize("value", [None, True, "3", [1], math.nan, math.inf, 10**400])
def test_number_refuses(value: object) -> None:
    assert number(value) is None


# --- numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "—"), (0, "0 B"), (999, "999 B"), (999.7, "1 kB"), (1_234_567, "1.23 MB"), (5e9, "5 GB")],
)
def test_bytes_text(value: float | None, expected: str) -> None:
    assert format_bytes(value) == expected


@given(st.floats(1, 1e18))
def test_bytes_text_reads_back(value: float) -> None:
    digits, unit = format_bytes(value).split()
    assert float(digits) < 1000
    assert float(digits) * 1000 ** " kMGTPE".index(unit[:-1] or " ") == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0123, "12.3 ms"), (0.9999, "1 s"), (3.44, "3.44 s"), (59.97, "1 min 00 s"), (245, "4 min 05 s"),
     (3599.7, "1 h 00 min"), (7620, "2 h 07 min")],
)  # fmt: skip
def test_seconds_text(value: float, expected: str) -> None:
    assert format_seconds(value) == expected


def test_count_text() -> None:
    assert [format_count(value) for value in (120, 9_999, 120_448, 3.4e6)] == ["120", "9999", "120 k", "3.4 M"]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(4, 60))
def test_thin_keeps_ends_and_extremes(values: list[float], limit: int) -> None:
    kept = thin(values, limit)
    assert kept == sorted(set(kept))
    assert len(kept) <= limit
    assert {0, len(values) - 1} <= set(kept)
    assert {min(values), max(values)} <= {values[i] for i in kept}


def test_live_headline_agrees_with_the_summary(tmp_path: Path) -> None:
    done = headline(load_run(make_run(tmp_path / "done")))
    live = headline(load_run(make_run(tmp_path / "live", status=None)))
    for key in ("val_bpb", "val_loss", "tokens", "sent_bytes", "received_bytes", "islands", "rounds"):
        assert getattr(live, key) == getattr(done, key), key
    assert live.sync_share == pytest.approx(done.sync_share, rel=0.05)
    assert live.utilisation == pytest.approx(done.utilisation, rel=0.05)


def test_train_curve_is_the_mean_at_the_total_of_tokens(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "a", islands=3, rounds=4))
    mean, each = train_curves(run)
    assert sorted(each) == [0, 1, 2]
    assert mean.y[5] == pytest.approx(sum(each[i].y[5] for i in range(3)) / 3)
    assert mean.tokens[5] == 3 * (5 * 8 + 1) * TOKENS_PER_STEP
    assert mean.tokens == sorted(mean.tokens)


def test_repeated_steps_count_once_and_the_last_wins(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", islands=1, rounds=4)
    before = train_curves(load_run(path))[0], eval_curve(load_run(path), "val_bpb")
    with (path / "metrics.jsonl").open("a") as file:
        file.write(line("step", island=0, step=1, tokens=512, loss=77.0, bytes_sent=0, time_s=0.02) + "\n")
        file.write(line("eval", step=64, tokens=9, val_bpb=88.0, bytes_sent=0, time_s=0.1) + "\n")
    after = train_curves(load_run(path))[0], eval_curve(load_run(path), "val_bpb")
    assert after[0].y == [77.0, *before[0].y[1:]]
    assert after[1].y == [88.0, *before[1].y[1:]]


def test_island_rows(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "a", islands=2, rounds=5, sync_s=0.3))
    rows = island_rows(run)
    assert [row.island for row in rows] == [0, 1]
    assert rows[0].tokens == 5 * 32 * TOKENS_PER_STEP
    assert rows[0].sent_bytes == 5 * 480_000
    assert rows[0].steps_per_s == pytest.approx(50)
    assert rows[1].steps_per_s == pytest.approx(1 / 0.022)
    assert rows[0].sync_share == pytest.approx(1.5 / (5 * 32 * 0.02 + 1.5))


def test_labels_differ(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / p, name="same", rounds=1) for p in ("a", "b", "x/c", "y/c")]
    paths.append(make_run(tmp_path / "z", name="other", rounds=1))
    assert labels([load_run(path) for path in paths]) == [
        "same (a)", "same (b)", "same (c) #1", "same (c) #2", "other",
    ]  # fmt: skip


# --- table and figures -------------------------------------------------------------------------------


def test_summary_table(tmp_path: Path) -> None:
    runs = [load_run(make_run(tmp_path / "a", name="a [bold]name[/bold]")), load_run(make_run(tmp_path / "b"))]
    console = Console(width=160, record=True, file=(tmp_path / "sink").open("w"))
    console.print(summary_table(runs))
    text = console.export_text()
    console.file.close()
    assert "a [bold]name[/bold]" in text
    row = next(row for row in text.splitlines() if "[bold]" in row)
    for cell in ("done", "2.863", "1.31 M", "9.6 MB", "31.1 %", "19.3 s"):
        assert cell in row, (cell, row)


def test_long_runs_are_thinned(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "a", islands=4, every=8, rounds=2500, sync_s=0.01))
    figures = curve_figures([run], ["a"]) + timeline_figures([run], ["a"])
    sizes = [len(trace["y"]) for figure in figures for trace in figure.spec["data"]]
    assert max(sizes) > 1000
    assert max(sizes) <= 2000
    assert "1 in 5 of 10000 syncs" in figures[-1].caption
    assert {*figures[-1].spec["data"][-1]["y"]} == {f"{i} link" for i in range(4)}


def test_sync_bars_end_where_the_sync_ends(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "a", islands=1, rounds=3, sync_s=0.4, overlap=0.75))
    _, waited, whole = timeline_figures([run], ["a"])[0].spec["data"]
    ends_s = [event["time_s"] for event in run.of("sync")]
    for bars, length_s in ((whole, 0.4), (waited, 0.1)):
        assert bars["x"] == pytest.approx([length_s] * 3)
        assert [b + x for b, x in zip(bars["base"], bars["x"], strict=True)] == pytest.approx(ends_s, abs=1e-4)


def test_bytes_axis_is_logarithmic_only_for_unequal_runs(tmp_path: Path) -> None:
    ddp, live, evil = [load_run(path) for path in three_runs(tmp_path)]
    unequal = curve_figures([ddp, live], ["a", "b"])[1].spec
    assert unequal["layout"]["xaxis"]["type"] == "log"
    assert min(min(trace["x"]) for trace in unequal["data"]) > 0
    assert "type" not in curve_figures([live, evil], ["a", "b"])[1].spec["layout"]["xaxis"]


def test_validation_loss_stands_in_for_missing_bits_per_byte(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", status=None)
    text = re.sub(r'"val_bpb": [\d.]+', '"val_bpb": null', (path / "metrics.jsonl").read_text())
    (path / "metrics.jsonl").write_text(text)
    figure = curve_figures([load_run(path)], ["a"])[0]
    assert figure.spec["layout"]["yaxis"]["title"]["text"] == "nats per token"
    assert not figure.empty


def test_flatten() -> None:
    nested = {"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}], "f": None}
    assert flatten(nested) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}], "f": None}


# --- the page ----------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Text outside scripts, and what could load something from elsewhere."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.text: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.outside: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside.append(tag)
        if tag == "script":
            self.scripts.append(dict(attrs))
        self.outside += [str(value) for key, value in attrs if key in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.inside):
            self.text.append(data)

    @property
    def flat(self) -> str:
        return " ".join(" ".join(self.text).split())


def test_default_output_is_in_the_first_run(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / name, rounds=2) for name in ("a", "b")]
    assert write_report(paths) == paths[0] / "report.html"
    assert not (paths[1] / "report.html").exists()
    assert [p.name for p in paths[0].iterdir() if p.name.endswith(".part")] == []


def test_page_of_one_run(tmp_path: Path) -> None:
    page = Page(write_report([make_run(tmp_path / "a")], tmp_path / "new" / "r.html").read_text(encoding="utf-8"))
    assert page.outside == []
    assert [script.get("type") for script in page.scripts] == ["application/json", None, None]
    for words in ("2.863 val. bits per byte", "9.6 MB sent per island", "68.9 % utilisation", "19.3 s wall-clock"):
        assert words in page.flat, words
    assert "sync.outer.momentum 0.9" in page.flat
    assert "betas [0.9, 0.95]" in page.flat
    assert "hardware.cores 2" in page.flat


def test_page_of_three_runs(tmp_path: Path) -> None:
    page = Page(write_report(three_runs(tmp_path), tmp_path / "r.html").read_text(encoding="utf-8"))
    assert len(page.scripts) == 3
    assert f"name ddp diloco H=32 {EVIL} sync.every 1 32 64" in page.flat
    assert "10 of 12 values are equal" in page.flat
    assert "sync.outer.momentum" not in page.flat
    assert f"contribution dropped: {EVIL}" in page.flat
    assert "diloco H=32: the last line of metrics.jsonl is cut short" in page.flat


@pytest.mark.parametrize("name", [EVIL, "</script><img src=x onerror=alert(1)>", '"><b>', "<!--<script>"])
def test_hostile_names_stay_text(tmp_path: Path, name: str) -> None:
    path = make_run(tmp_path / "a", name=name, status=f'done" onclick="{name}', rounds=2)
    source = write_report([path]).read_text(encoding="utf-8")
    plain = write_report([make_run(tmp_path / "b", rounds=2)]).read_text(encoding="utf-8")
    page = Page(source)
    assert (len(page.scripts), page.outside) == (3, [])
    assert source.count("<") == plain.count("<")
    assert " ".join(name.split()) in page.flat


def test_names_are_escaped_twice() -> None:
    """Once because plotly reads tags in labels, once because the data lies inside a script element."""
    assert plot_label("<a href='x'>&") == "&lt;a href='x'&gt;&amp;"
    packed = embedded_json({"title": f"{EVIL}<!-- & \u2028"})
    assert not set("<>&\u2028") & set(packed)
    assert json.loads(packed) == {"title": f"{EVIL}<!-- & \u2028"}


def test_run_without_events_yet(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", status=None)
    (path / "metrics.jsonl").write_text("")
    (path / "environment.json").unlink()
    page = Page(write_report([path]).read_text(encoding="utf-8"))
    assert page.flat.count("Nothing logged yet.") == 7
    assert "No island has logged a step yet." in page.flat


def test_bad_outputs(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", rounds=1)
    with pytest.raises(ConfigError, match="is a directory"):
        write_report([path], tmp_path)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report([path], path / "config.json" / "r.html")
    with pytest.raises(ConfigError, match="at least one"):
        write_report([])


def test_missing_plotly_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ConfigError, match=r"lowcomm\[report\]"):
        write_report([make_run(tmp_path / "a", rounds=1)])


# --- the page in a browser ---------------------------------------------------------------------------


def browse(page: Path, profile: Path, *extra: str) -> tuple[str, list[str]]:
    """The DOM after the scripts ran, and every line that the page wrote to the console."""
    assert BROWSER is not None
    quiet = ["gpu", "quic", "background-networking", "component-update", "sync"]
    command = [BROWSER, "--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{word}" for word in quiet)]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=8000", "--enable-logging=stderr"]
    done = subprocess.run([*command, *extra, page.as_uri()], capture_output=True, text=True, timeout=100, check=True)
    console = [text for text in done.stderr.splitlines() if "CONSOLE" in text or "Uncaught" in text]
    return done.stdout, console


needs_browser = pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is on PATH")


@needs_browser
@pytest.mark.parametrize("count", [1, 3])
def test_browser_draws_every_plot(tmp_path: Path, count: int) -> None:
    page = write_report(three_runs(tmp_path / "runs")[-count:], tmp_path / "r.html")
    dom, console = browse(page, tmp_path / "profile", "--dump-dom")
    assert console == []
    plots = re.split(r'<div class="plot[ "]', dom.split('id="figures"')[0])[1:]
    assert len(plots) == 6 + count
    for plot in plots:
        plot = plot.split("</figure>")[0]
        assert "main-svg" in plot
        assert re.search(r'class="(trace scatter|trace bars|point)', plot), plot[:300]
        # A colour that the script did not fill in would be drawn in plotly's default.
        assert re.search(r"(stroke|fill): rgb\((43, 108, 184|217, 105, 42|42, 145, 101)\)", plot), plot[:300]


@needs_browser
def test_browser_reports_errors(tmp_path: Path) -> None:
    """The check above can fail: the content policy stops a foreign script, and the console says so."""
    page = write_report([make_run(tmp_path / "a", rounds=2)])
    page.write_text(page.read_text(encoding="utf-8").replace("<main>", "<main><script>1</script>"), encoding="utf-8")
    _, console = browse(page, tmp_path / "profile", "--dump-dom")
    assert any("Content Security Policy" in text for text in console)


@needs_browser
def test_browser_screenshot(tmp_path: Path) -> None:
    page = write_report([make_run(tmp_path / "a", rounds=6)])
    picture = tmp_path / "page.png"
    browse(page, tmp_path / "profile", f"--screenshot={picture}", "--window-size=1200,1400")
    # A blank page of this size is about 6 kB.
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 30_000
