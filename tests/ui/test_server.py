"""One real server, real trainings: the same config.json as from the command line, stop, resume, the end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowcomm.cli import main
from lowcomm.run.signals import StopFlag
from lowcomm.ui.run_list import ask_to_stop
from tests.support import runs
from tests.support.ui import Client, server


def write_recipe(directory: Path) -> str:
    """A recipe that says that it returns a RunConfig, over a small corpus."""
    corpus = runs.write_corpus(directory)
    text = (
        "from pathlib import Path\nfrom lowcomm.config import RunConfig\nfrom tests.support.runs import small\n\n"
        f"def local() -> RunConfig:\n    '''Small.'''\n    return small(Path({str(corpus)!r}), None)\n"
    )
    (directory / "mine.py").write_text(text, encoding="utf-8")
    return "mine.py:local"


@pytest.mark.parametrize(
    "arguments", [["--port", "70000"], ["--port", "x"], ["--runs-dir", __file__], ["--when-closed", "x"], ["now"]]
)
def test_bad_flags_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and ("Fix: " in error)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory whose run, left alone on purpose, does not outlive a test that fails."""
    yield tmp_path
    ask_to_stop(tmp_path / "runs" / "a")


@pytest.mark.slow
def test_a_run_from_the_page_is_the_one_from_the_command_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started, stopped, resumed and finished by the pages; its config.json is that of `lowcomm train` to the byte."""
    reference = write_recipe(place)
    given = {"steps": "100000", "sync.codec": "ErrorFeedback(codec=Int4(block=64))", "name": "a"}
    with server(place) as ui, Client.of(ui.link) as client:
        assert client.post("start", {"recipe": reference, "given": given})["url"] == f"{client.base}runs/a"
        seen = client.events("a", lambda parts: parts["status"] == "running")
        assert seen["alive"] and "$ lowcomm train mine.py:local" in seen["console"]
        assert "going on already" in client.post("runs/a/resume", {})["problem"]
        assert "already holds a run" in client.post("start", {"recipe": reference, "given": given})["problem"]
        stored = (place / "runs" / "a" / "config.json").read_bytes()
        assert client.post("runs/a/stop", {}) == {"asked": True}
        done = client.events("a", lambda parts: parts["status"] == "stopped")["done"]
        assert client.post("runs/a/resume", {})["url"] == f"{client.base}runs/a"
        assert client.events("a", lambda parts: parts.get("done", 0) > done + 10)["alive"]
        assert ui.end(signal.SIGINT) == 0
    assert "still training: a" in "".join(ui.lines[1:])
    assert ui.lines[1].startswith("next link") and len(ui.lines) == 3
    with server(place, ["--when-closed", "stop"]) as ui, Client.of(ui.link) as client:  # finds what the first one left
        assert client.events("a", lambda parts: parts["alive"])["status"] == "running"
        assert client.post("runs/a/stop", {}) == {"asked": True}
        assert not client.events("a", lambda parts: parts["status"] == "stopped")["alive"]
        assert ui.end(signal.SIGTERM) == 0
    assert runs.summary(place / "runs" / "a")["status"] == "stopped"
    (place / "cli").mkdir()
    monkeypatch.chdir(place / "cli")
    (place / "cli" / "mine.py").symlink_to(place / "mine.py")
    monkeypatch.setattr(StopFlag, "install", lambda flag: setattr(flag, "signal", "SIGTERM"))  # stops after a step
    flags = [word for path, text in given.items() for word in (f"--{path}", text)]
    assert main(["train", reference, *flags]) == 3
    assert (place / "cli" / "runs" / "a" / "config.json").read_bytes() == stored
