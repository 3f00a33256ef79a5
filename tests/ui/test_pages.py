"""The pages over real run directories, without a server: what they show, and what they never open."""

from __future__ import annotations

import html
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lowcomm.report.load import load_run
from lowcomm.trainer import train
from lowcomm.ui import run_list
from lowcomm.ui.app import pages
from lowcomm.ui.desk import Desk
from lowcomm.ui.look import live_parts
from lowcomm.ui.resume import _without_resume, given_by
from lowcomm.ui.run_list import RunList, holder
from lowcomm.ui.trainings import CONSOLE, Trainings
from tests.support import runs
from tests.support.asgi import TestClient

BASE = "/place/"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is done."""
    corpus = runs.write_corpus(tmp_path_factory.mktemp("corpus"))
    directory = tmp_path_factory.mktemp("finished") / "first"
    assert train(runs.small(corpus, directory, name="first", log_every=2)) == 0
    return directory


@pytest.fixture
def desk(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A directory of runs with two that are done, one that was cut off and one that can't be read."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    for name in ("first", "second & <b>", "cut"):
        shutil.copytree(finished, root / name)
    (root / "cut" / "summary.json").unlink()
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text("{", encoding="utf-8")
    (root / "no-run").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "config.json").write_text('{"name": "secret"}', encoding="utf-8")
    (root / "link").symlink_to(tmp_path / "secret")
    return Desk(root=Path("runs"), base=BASE)


@pytest.fixture
def client(desk: Desk) -> TestClient:
    return TestClient(pages(desk), follow_redirects=False)


def test_runs_are_listed_with_their_state(client: TestClient) -> None:
    page = client.get(BASE).text
    for name, status in (("first", "done"), ("cut", "interrupted"), ("broken", "unreadable")):
        row = page.split(f'value="{name}"')[1].split("</tr>")[0]
        assert f">{status}</span>" in row
    assert "second &amp; &lt;b&gt;" in page and "<b>" not in page.split("<main>")[1].split("</main>")[0].replace(
        "<b>lowcomm</b>", ""
    )
    assert "no-run" not in page and "secret" not in page and ">link<" not in page
    assert client.get(f"{BASE}table").text in page


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "../secret",
        "..%2Fsecret",
        "link",
        "no-run",
        "/etc",
        "first/../../secret",
        "%2e%2e%2fsecret",
        "first%00",
    ],
)
def test_no_path_leads_out_of_the_list(client: TestClient, name: str) -> None:
    for path in (f"runs/{name}", f"runs/{name}/events", f"report?run={name}", f"compare?run=first&run={name}"):
        answer = client.get(BASE + path)
        above = name in (".", "..")  # what clients take for another address
        assert answer.status_code in ((200, 307, 400, 404) if above else (400, 404)), path
        assert '"secret"' not in answer.text and ">secret<" not in answer.text
    for path in (f"runs/{name}/stop", f"runs/{name}/resume"):
        assert client.post(BASE + path, json={}).status_code in (400, 404, 405)


def test_a_run_s_page_says_all_that_does_not_change(client: TestClient, desk: Desk) -> None:
    page = client.get(f"{BASE}runs/first").text
    assert page.count('class="plot"') == 7 and "resolved values" in page
    assert "<h1>second &amp; &lt;b&gt;</h1>" in client.get(f"{BASE}runs/second%20%26%20%3Cb%3E").text
    assert client.get(f"{BASE}runs/broken").status_code == 200


def test_events_of_a_finished_run_are_its_state_and_the_end(client: TestClient) -> None:
    answer = client.get(f"{BASE}runs/first/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    first, last = answer.text.strip().split("\n\n")
    assert last == "event: end\ndata: {}"
    parts = json.loads(first.removeprefix("event: run\ndata: "))
    assert (parts["status"], parts["alive"], parts["done"], parts["steps"]) == ("done", False, 12, 12)
    assert set(parts["figures"]) == {*(f"curve-{i}" for i in range(6)), "timeline-0"}
    sent = parts["figures"]["curve-2"]["data"][1]["y"]
    last_sync = load_run(Path("runs/first")).of("sync")[-1]
    assert sent == sorted(sent) and sent[-1] == pytest.approx(last_sync["bytes_sent"], rel=1e-5)
    assert "tile" in parts["html"]["tiles"]


def test_hostile_texts_of_a_run_stay_texts(client: TestClient, desk: Desk) -> None:
    evil = "<script>alert(1)</script>"
    path = desk.root / "first" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "name": evil, "seed": evil}), encoding="utf-8")
    with (desk.root / "first" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "note", "note": evil, "island": evil, "round": evil}) + "\n")
    summary = desk.root / "first" / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "status": evil, "name": evil}), encoding="utf-8")
    for path in ("", "runs/first", "compare?run=first&run=cut", "report?run=first"):
        assert evil not in client.get(BASE + path).text, path
    parts = live_parts(desk.root / "first", desk.trainings)
    assert not any(evil in text for text in parts["html"].values()) and evil not in json.dumps(parts["figures"])


def test_a_report_is_made_anew_and_runs_as_a_stranger(client: TestClient, desk: Desk) -> None:
    (desk.root / "first" / "report.html").write_text("<script>fetch('/place/start')</script>", encoding="utf-8")
    answer = client.get(f"{BASE}report?run=first&run=cut")
    assert answer.status_code == 200 and "fetch('/place/start')" not in answer.text
    assert answer.headers["content-security-policy"].startswith("sandbox allow-scripts;")
    assert "2 runs" in answer.text and (desk.root / "first" / "report.html").stat().st_size < 100


def test_runs_are_compared(client: TestClient) -> None:
    page = client.get(f"{BASE}compare?run=first&run=cut&run=second+%26+%3Cb%3E").text
    assert page.count('class="panel curve"') == 6 and page.count('class="panel timeline"') == 3
    figures = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    assert len(figures["curve-3"]["data"]) == 3
    assert client.get(f"{BASE}compare").status_code == 400
    assert client.get(f"{BASE}compare?run=broken").status_code == 400


def test_recipes_are_listed_and_open_as_forms(client: TestClient) -> None:
    page = client.get(f"{BASE}new").text
    assert "diloco.py" in page and "new?recipe=fed_lora.py%3Asmollm2" in page
    form = client.get(f"{BASE}new?recipe=diloco.py:smoke&set.steps=0&set.nothing=1").text
    assert 'data-path="sync.codec"' in form and "steps = 0 is not allowed" in html.unescape(form)
    assert "disabled>Start" in form
    assert client.get(f"{BASE}new?recipe=/etc/passwd").status_code == 400


def test_a_form_is_checked_on_every_change(client: TestClient) -> None:
    wanted: dict[str, Any] = {"recipe": "diloco.py:smoke", "given": {}, "shape": "", "choose": None}
    first = client.post(f"{BASE}check", json=wanted).json()
    assert first["problems"] == {} and first["command"] == "lowcomm train diloco.py:smoke"
    shape = first["form"].split('data-shape="')[1].split('"')[0]
    second = client.post(f"{BASE}check", json={**wanted, "shape": shape, "given": {"sync.every": "0"}}).json()
    assert second["form"] is None and "1 or more" in second["problems"]["sync.every"]
    third = client.post(f"{BASE}check", json={**wanted, "choose": ["sync.codec", "ErrorFeedback"]}).json()
    assert 'data-path="sync.codec.beta"' in third["form"] and third["given"]["sync.codec"].startswith("ErrorFeedback(")
    refused = client.post(f"{BASE}start", json={**wanted, "given": {"sync.every": "0"}})
    assert refused.status_code == 400 and "sync.every" in refused.json()["problem"]


def test_a_sentence_is_shown_as_differences(client: TestClient) -> None:
    answer = client.post(f"{BASE}intent", json={"text": "3 islands, <b>wow</b>", "current": "diloco.py:smoke"}).json()
    assert answer["given"] == {"islands": "3"} and "set.islands=3" in answer["html"]
    assert "<b>wow" not in answer["html"] and "Not understood" in answer["html"]


def test_a_run_is_resumed_by_its_own_command_only(client: TestClient, desk: Desk) -> None:
    path = desk.root / "cut" / "environment.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    for command, words in (
        (["pytest"], "was not started by lowcomm train"),
        (["x", "sweep", "diloco.py:smoke"], "was not started by lowcomm train"),
        (["x", "train", "/etc/passwd"], "a recipe that is not offered here"),
        (["x", "train", "diloco.py:smoke", "--name", "other"], "was started as runs/other"),
        (["x", "train", "diloco.py:smoke", "--name", "cut"], "differs from the run that is to be resumed"),
        (["x", "train", "diloco.py:smoke", "--name", "cut", "--help"], "--help among its flags"),
        ("train", "was not started by lowcomm train"),
    ):
        path.write_text(json.dumps({**stored, "command": command}), encoding="utf-8")
        answer = client.post(f"{BASE}runs/cut/resume", json={})
        assert answer.status_code == 400 and words in answer.json()["problem"], command
    path.unlink()
    assert "does not say how it was started" in client.post(f"{BASE}runs/cut/resume", json={}).json()["problem"]
    assert not desk.trainings.started


def test_flags_of_a_run_as_fields() -> None:
    resumed = ["--a", "1", "--resume", "auto", "--b", "--resume", "--c=2", "--no-resume", "--resume=True"]
    assert _without_resume(resumed) == ["--a", "1", "--b", "--c=2"]
    words = [
        "--sync.every",
        "4",
        "--sync.local-steps",
        "1",
        "2",
        "--no-tensorboard",
        "--checkpoint.no-export",
        "--batched",
        "--x=y",
    ]
    assert given_by(words) == {
        "sync.every": "4", "sync.local_steps": "1 2", "tensorboard": "False", "checkpoint.export": "False",
        "batched": "True", "x": "y",
    }  # fmt: skip


@pytest.mark.skipif(not run_list.LOCKS.exists(), reason="the kernel has no list of locks")
def test_who_holds_a_run_is_found_without_trying_its_lock(tmp_path: Path) -> None:
    from lowcomm.run.run_dir import lock

    (tmp_path / "run").mkdir()
    assert holder(tmp_path / "run") is None
    held = lock(tmp_path / "run", 0, False)
    assert holder(tmp_path / "run") == os.getpid()
    held.close()
    assert holder(tmp_path / "run") is None


def test_a_stop_that_reaches_nobody_says_so(client: TestClient) -> None:
    assert "does not go on here" in client.post(f"{BASE}runs/first/stop", json={}).json()["problem"]


def test_a_refused_training_leaves_its_words_and_no_directory(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; print('lowcomm: error: no'); sys.exit(2)"
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **more: real([sys.executable, "-c", script], **more))
    desk.trainings.start(desk.root / "new", ["train", "x.py:y"])
    assert desk.trainings.wait("new", 30)
    assert not desk.trainings.alive(desk.root / "new") and not (desk.root / "new").exists()
    assert desk.directory("new") == desk.root / "new"
    parts = live_parts(desk.root / "new", desk.trainings)
    assert parts["console"] == "$ lowcomm train x.py:y\nlowcomm: error: no" and not parts["alive"]


def test_files_that_a_page_makes_are_private(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **more: real([sys.executable, "-c", "input()"], **more))
    desk.trainings.start(desk.root / "new", ["train"])
    assert (desk.root / "new").stat().st_mode & 0o777 == 0o700
    assert (desk.root / "new" / CONSOLE).stat().st_mode & 0o777 == 0o600
    desk.trainings.wait("new", 30)


def test_an_empty_directory_of_runs(tmp_path: Path) -> None:
    assert RunList(root=tmp_path / "nothing").names() == []
    client = TestClient(pages(Desk(root=tmp_path / "nothing", base=BASE, trainings=Trainings())))
    assert "No run in" in client.get(BASE).text
