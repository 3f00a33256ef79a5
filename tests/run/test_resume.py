"""Stopping and resuming: bit for bit the run that was never stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lowcomm import checkpoint
from lowcomm.cli import main
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.run.signals import STOPPING, StopFlag
from lowcomm.trainer import train
from lowcomm.transport import Simulated
from lowcomm.types import CheckpointError, ConfigError, StoppedError
from tests.support import runs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return runs.write_recipe(tmp_path_factory.mktemp("recipe"), corpus)


def stop_at(config: RunConfig, step: int) -> RunConfig:
    return dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, stop_at_step=step))


def resumed(config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, resume=True)


def test_twice_twenty_rounds_are_forty(tmp_path: Path, corpus: Path) -> None:
    saves = CheckpointConfig(every_rounds=20, export=False)
    whole = runs.small(corpus, tmp_path / "whole", steps=80, sync=SyncConfig(every=2), checkpoint=saves)
    halves = dataclasses.replace(whole, run_dir=tmp_path / "halves")
    assert train(whole) == 0
    assert train(stop_at(halves, 40)) == 3
    assert runs.summary(tmp_path / "halves")["rounds"] == 20
    assert train(resumed(halves)) == 0
    expected = runs.outcome(tmp_path / "whole")
    assert expected["rounds"] == 40
    runs.assert_same(runs.outcome(tmp_path / "halves"), expected)


@pytest.mark.parametrize("name", ["local", "ddp", "post_local", "streaming"])
def test_stopped_at_any_step(tmp_path: Path, corpus: Path, name: str) -> None:
    """On a boundary, inside a round, before, on and after the switch of a warm-up (step 5); three stops in one run."""
    whole = runs.variant(name, corpus, tmp_path / "whole")
    assert train(whole) == 0
    expected = runs.outcome(tmp_path / "whole")
    for stops in ((4, 7), (3, 5, 6), (9, 11)):
        parts = dataclasses.replace(whole, run_dir=tmp_path / f"parts{stops[0]}")
        for i, step in enumerate(stops):
            assert train(dataclasses.replace(stop_at(parts, step), resume=i > 0)) == 3
            assert runs.summary(parts.directory)["steps"] == step
        assert train(resumed(parts)) == 0
        runs.assert_same(runs.outcome(parts.directory), expected)


@pytest.mark.parametrize("name", ["local", "ddp", "post_local", "streaming"])
def test_processes_stop_and_resume(tmp_path: Path, corpus: Path, recipe: Path, name: str) -> None:
    """Two processes, stopped inside a round and resumed, give the bits of one undisturbed simulation."""
    assert train(runs.variant(name, corpus, tmp_path / "whole")) == 0
    parts, log = tmp_path / "parts", tmp_path / "log"
    common = ["train", f"{recipe}:{name}", "--transport", "collective", "--run-dir", str(parts)]
    step = "6" if name == "streaming" else "7"  # an exchange is on its way after step 6
    assert runs.run_islands([*common, "--checkpoint.stop-at-step", step], 2, log) == [3, 3], log.read_text()
    assert runs.summary(parts)["status"] == "stopped"
    assert runs.run_islands([*common, "--resume"], 2, log) == [0, 0], log.read_text()
    runs.assert_same(runs.outcome(parts), runs.outcome(tmp_path / "whole"))


def test_an_exchange_that_ends_as_another_was_stopped_is_a_stop(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a federation, whose server tells the others: saved with the pseudo-gradient pending, no failure."""
    whole = runs.small(corpus, tmp_path / "whole")
    parts = dataclasses.replace(whole, run_dir=tmp_path / "parts")
    assert train(whole) == 0
    sums = iter([None, StoppedError("client 1 ended with exit code 3: it was stopped")])
    real = Simulated.weighted_sum

    def sum_or_stop(self: Simulated, vectors: Any, weights: Any, out: torch.Tensor) -> Any:
        error = next(sums)
        if error is not None:
            raise error
        return real(self, vectors, weights, out)

    with monkeypatch.context() as patched:
        patched.setattr(Simulated, "weighted_sum", sum_or_stop)
        assert train(parts) == 3
    found = runs.summary(parts.directory)
    assert (found["status"], found["steps"]) == ("stopped", 8)
    assert "stopped (client 1 ended with exit code 3: it was stopped)" in str(runs.metrics(parts.directory))
    assert train(resumed(parts)) == 0
    again, expected = runs.summary(parts.directory), runs.summary(whole.directory)
    for key in ("weights_sha256", "val_loss", "tokens", "steps", "rounds"):  # bytes: its roll was called twice
        assert again[key] == expected[key], key


def test_simulation_resumed_by_processes(tmp_path: Path, corpus: Path, recipe: Path) -> None:
    whole = runs.small(corpus, tmp_path / "whole")
    parts = dataclasses.replace(whole, run_dir=tmp_path / "parts")
    assert train(whole) == 0
    assert train(stop_at(parts, 6)) == 3
    common = ["train", f"{recipe}:local", "--transport", "collective", "--run-dir", str(parts.directory), "--resume"]
    assert runs.run_islands([*common, "--checkpoint.stop-at-step", "9"], 2, tmp_path / "log") == [3, 3]
    assert train(resumed(parts)) == 0  # and back
    runs.assert_same(runs.outcome(parts.directory), runs.outcome(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("name", "stops"), [("local", (5, 7)), ("local", (5, 9)), ("ddp", (5, 9)), ("post_local", (7, 6))]
)
def test_processes_stopped_apart(tmp_path: Path, corpus: Path, recipe: Path, name: str, stops: tuple[int, int]) -> None:
    """A signal finds islands at different steps, one of them maybe waiting in an exchange that fails.

    That is a stop, too, as the other has said why it goes.
    """
    whole = runs.variant(name, corpus, tmp_path / "whole")
    assert train(whole) == 0
    expected = runs.outcome(tmp_path / "whole")
    log, parts, environment = tmp_path / "log", tmp_path / "parts", runs.islands_environment(2)
    common = ["train", f"{recipe}:{name}", "--transport", "collective", "--run-dir", str(parts)]
    islands = [
        runs.start(main, ([*common, "--checkpoint.stop-at-step", str(stop)],), log, environment[rank])
        for rank, stop in enumerate(stops)
    ]
    assert [runs.wait(child, log) for child in islands] == [3, 3], log.read_text()
    said = log.read_text()
    assert "Traceback" not in said and "failed" not in said and "error" not in said
    assert runs.summary(parts)["status"] == "stopped"
    simulated = dataclasses.replace(whole, run_dir=tmp_path / "simulated")
    shutil.copytree(parts, tmp_path / "simulated")
    assert train(resumed(simulated)) == 0
    runs.assert_same(runs.outcome(tmp_path / "simulated"), expected)
    assert runs.run_islands([*common, "--resume"], 2, log) == [0, 0], log.read_text()
    runs.assert_same(runs.outcome(parts), expected)


def test_random_state_is_resumed(tmp_path: Path, corpus: Path) -> None:
    """A model with dropout draws random numbers in each step."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=260,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        attention_dropout=0.3,
    )
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "model")
    whole = runs.small(corpus, tmp_path / "whole", model=ModelConfig(directory=tmp_path / "model"))
    parts = dataclasses.replace(whole, run_dir=tmp_path / "parts")
    assert train(whole) == 0
    assert train(stop_at(parts, 6)) == 3
    torch.manual_seed(999)
    assert train(resumed(parts)) == 0
    expected = runs.outcome(tmp_path / "whole")
    assert expected["island-00000/island.safetensors/rng.cpu"] != expected["island-00001/island.safetensors/rng.cpu"]
    runs.assert_same(runs.outcome(parts.directory), expected)


def test_learning_rate_follows_global_progress(tmp_path: Path, corpus: Path) -> None:
    whole = runs.small(corpus, tmp_path / "whole", log_every=1)
    parts = dataclasses.replace(whole, run_dir=tmp_path / "parts")
    assert train(whole) == 0
    assert train(stop_at(parts, 5)) == 3
    assert train(resumed(parts)) == 0
    rates = [
        [(m["step"], m["lr"]) for m in runs.metrics(tmp_path / d) if m["event"] == "step" and m["island"] == 1]
        for d in ("whole", "parts")
    ]
    assert [step for step, _ in rates[0]] == list(range(1, 13))
    assert len({lr for _, lr in rates[0]}) > 8
    assert rates[0] == rates[1]


def test_torn_newest_checkpoint_is_skipped_and_said(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = runs.small(corpus, tmp_path / "whole")
    parts = dataclasses.replace(whole, run_dir=tmp_path / "parts")
    assert train(whole) == 0
    assert train(stop_at(parts, 9)) == 3
    torn = parts.directory / "checkpoints" / "000002-stop0" / "island-00001" / "island.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    capsys.readouterr()
    assert train(stop_at(resumed(parts), 10)) == 3
    said = capsys.readouterr().out
    assert "resumed from checkpoint 000002 at inner step 8; skipped as incomplete or corrupt: 000002-stop0" in said
    assert any(
        "skipped as incomplete or corrupt: 000002-stop0" in (m["note"] or "") for m in runs.metrics(parts.directory)
    )
    assert train(resumed(parts)) == 0  # from the second stop, which did not reuse the torn one's name
    runs.assert_same(runs.outcome(parts.directory), runs.outcome(tmp_path / "whole"))


def test_parts_of_two_attempts_are_not_mixed(tmp_path: Path, corpus: Path) -> None:
    """Island 1's part of the newest checkpoint comes from another attempt: whole by itself, but of other weights."""
    first = runs.small(corpus, tmp_path / "first")
    other = runs.small(corpus, tmp_path / "other", seed=1)
    for config in (first, other):
        assert train(stop_at(config, 9)) == 3
    name = "checkpoints/000002-stop0/island-00001"
    shutil.rmtree(tmp_path / "first" / name)
    shutil.copytree(tmp_path / "other" / name, tmp_path / "first" / name)
    assert "000002-stop0" in checkpoint.verified(tmp_path / "first" / "checkpoints", 1)
    assert train(stop_at(resumed(first), 10)) == 3
    assert any("from checkpoint 000002 at" in (m["note"] or "") for m in runs.metrics(tmp_path / "first"))


def test_without_a_whole_checkpoint(tmp_path: Path, corpus: Path) -> None:
    config = runs.small(corpus, tmp_path / "run", checkpoint=CheckpointConfig(export=False))
    assert train(stop_at(config, 5)) == 3
    (tmp_path / "run/checkpoints/000001-stop0/island-00000/manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint that is whole on every island"):
        train(resumed(config))
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(ConfigError, match="a run without a checkpoint"):
        train(resumed(config))


@pytest.fixture
def terminal() -> Iterator[None]:
    """SIGHUP as a terminal has it: the suite itself may run under nohup, where a run ignores it, too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_signals_that_stop_a_run(terminal: None) -> None:
    flag = StopFlag()
    for number in STOPPING:
        flag.install()
        try:
            os.kill(os.getpid(), number)
            assert flag.signal == number.name
        finally:
            flag.restore(leaving=False)
    before = {n: signal.getsignal(n) for n in STOPPING}
    flag.install()
    flag.restore(leaving=True)
    try:
        for number in STOPPING:
            os.kill(os.getpid(), number)  # it has saved, and does not die of it
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert {n.name for n in STOPPING} == {"SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"}


def test_under_nohup_a_terminal_that_closes_changes_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    flag = StopFlag()
    flag.install()
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        assert flag.signal is None
    finally:
        flag.restore(leaving=False)
        signal.signal(signal.SIGHUP, before)


def waits_with_its_parent(pid_file: str) -> int:
    """Start a process that stops with this one, say its number, and wait."""
    child = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import signal\nfrom lowcomm.run.ranks import follow_supervisor\n"
            "follow_supervisor()\nprint('ready', flush=True)\nsignal.pause()",
        ],
        env={**os.environ, "RANK": "0"},
        stdout=subprocess.PIPE,
        cwd=runs.ROOT,
    )
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    Path(pid_file).write_text(str(child.pid))
    return child.wait()


def test_a_process_whose_parent_is_killed_stops(tmp_path: Path) -> None:
    """kill -9 of a launcher runs none of its code: the kernel tells the islands."""
    parent = runs.start(waits_with_its_parent, (str(tmp_path / "pid"),), tmp_path / "log")
    until = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < until, (tmp_path / "log").read_text()
        time.sleep(0.02)
    pid = int((tmp_path / "pid").read_text())
    handle = os.pidfd_open(pid)  # pyright: ignore[reportAttributeAccessIssue]
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    ended, _, _ = select.select([handle], [], [], 60)
    os.close(handle)
    assert ended, "it outlived its parent"


def test_another_configuration_is_refused_by_name(tmp_path: Path, corpus: Path) -> None:
    config = runs.small(corpus, tmp_path / "run")
    assert train(stop_at(config, 5)) == 3
    before = (tmp_path / "run/config.json").read_bytes()
    inner = InnerConfig(optimizer=AdamW(lr=1e-3))
    for changed, field in (
        (dataclasses.replace(config, inner=inner), r"inner\.optimizer\.lr = 0\.001 \(stored: 0\.003\)"),
        (dataclasses.replace(config, steps=16), r"steps = 16 \(stored: 12\)"),
        (dataclasses.replace(config, islands=3), r"islands = 3 \(stored: 2\)"),
        (dataclasses.replace(config, sync=SyncConfig(every=2)), r"sync\.every = 2 \(stored: 4\)"),
    ):
        with pytest.raises(ConfigError, match=field):
            train(resumed(changed))
    assert (tmp_path / "run/config.json").read_bytes() == before
    (tmp_path / "run/config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json can't be read"):
        train(resumed(config))


def wait_for_step(run_dir: Path, step: int, log: Path, timeout_s: float = 180) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        path = run_dir / "metrics.jsonl"
        if path.exists() and any((json.loads(x)["step"] or 0) >= step for x in path.read_text().splitlines()):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} not reached: {log.read_text()}")


HEARD = pytest.mark.skipif(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, reason="SIGHUP is ignored: nohup")
LONG = ["--steps", "3000", "--log-every", "1", "--checkpoint.every-rounds", "40"]
"""Long enough that a signal always finds it at work; `tail` of it is never trained."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_simulation_stopped_by_signal(tmp_path: Path, corpus: Path, recipe: Path, number: signal.Signals) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    arguments = ["simulate", f"{recipe}:local", "--run-dir", str(run_dir), *LONG]
    child = runs.start(main, (arguments,), log)
    wait_for_step(run_dir, 5, log)
    assert child.pid is not None
    os.kill(child.pid, number)
    start_s = time.monotonic()
    assert runs.wait(child, log) == 3, log.read_text()
    assert time.monotonic() - start_s < 10
    assert_continues_exactly(run_dir, corpus, tmp_path, number.name)


def assert_continues_exactly(run_dir: Path, corpus: Path, tmp_path: Path, cause: str) -> None:
    """The stopped run, continued for some rounds, has the weights of one that was never stopped."""
    stopped = runs.summary(run_dir)
    assert stopped["status"] == "stopped"
    assert any(f"stopped ({cause})" in (m["note"] or "") for m in runs.metrics(run_dir))
    stop = (stopped["steps"] // 4 + 3) * 4
    config = runs.small(corpus, run_dir, steps=3000)
    assert train(stop_at(resumed(config), stop)) == 3
    assert train(stop_at(dataclasses.replace(config, run_dir=tmp_path / "whole"), stop)) == 3
    a, b = runs.summary(run_dir), runs.summary(tmp_path / "whole")
    assert {k: a[k] for k in runs.OUTCOME} == {k: b[k] for k in runs.OUTCOME}


def island_pids(launcher_pid: int) -> dict[int, int]:
    """Process id by rank of the islands that a `lowcomm train` started."""
    found: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            name = (path / "comm").read_text().strip()
        except (OSError, UnicodeDecodeError):
            continue
        if parent == launcher_pid and name.startswith("rank "):
            found[int(name.removeprefix("rank "))] = int(path.name)
    return found


@pytest.mark.parametrize(
    ("to", "number"), [pytest.param("launcher", signal.SIGHUP, marks=HEARD), ("island 1", signal.SIGUSR1)]
)
def test_train_stopped_by_signal(tmp_path: Path, corpus: Path, recipe: Path, to: str, number: signal.Signals) -> None:
    """The launcher or one island gets the signal; all islands save, wherever they are, and leave.

    SIGTERM of the launcher: transport/test_listeners.py.
    """
    run_dir, log = tmp_path / "run", tmp_path / "log"
    arguments = ["train", f"{recipe}:local", "--transport", "collective", "--run-dir", str(run_dir), *LONG]
    child = runs.start(main, (arguments,), log)
    wait_for_step(run_dir, 5, log)
    assert child.pid is not None
    islands = island_pids(child.pid)
    assert sorted(islands) == [0, 1]
    os.kill(child.pid if to == "launcher" else islands[1], number)
    assert runs.wait(child, log) == 3, log.read_text()
    assert not any(Path(f"/proc/{pid}").exists() for pid in islands.values())
    said = log.read_text()
    assert "Traceback" not in said and "error" not in said and "failed" not in said
    if to == "launcher":
        assert_continues_exactly(run_dir, corpus, tmp_path, "SIGTERM")  # which the launcher passes on, whatever came
    else:
        assert runs.summary(run_dir)["status"] == "stopped"
        assert len(list((run_dir / "checkpoints").glob("*-stop0/island-*"))) == 2


def test_islands_whose_launcher_is_killed_save_and_leave(tmp_path: Path, corpus: Path, recipe: Path) -> None:
    """kill -9 runs none of its code: no island is left behind, and all of them have saved."""
    run_dir, log = tmp_path / "run", tmp_path / "log"
    arguments = ["train", f"{recipe}:local", "--transport", "collective", "--run-dir", str(run_dir), *LONG]
    child = runs.start(main, (arguments,), log)
    wait_for_step(run_dir, 5, log)
    assert child.pid is not None
    islands = island_pids(child.pid)
    handles = [os.pidfd_open(pid) for pid in islands.values()]  # pyright: ignore[reportAttributeAccessIssue]
    child.kill()
    for handle in handles:
        ended, _, _ = select.select([handle], [], [], 60)
        os.close(handle)
        assert ended, "an island outlived its launcher"
    assert len(list((run_dir / "checkpoints").glob("*-stop0/island-*"))) == 2, log.read_text()
    config = runs.small(corpus, run_dir, steps=3000)
    assert train(stop_at(resumed(config), (runs.summary(run_dir)["steps"] // 4 + 2) * 4)) == 3


def test_killed_island(tmp_path: Path, corpus: Path, recipe: Path) -> None:
    """kill -9 of one island: without a quorum exit code 1 and a clear message, no hang; a resume goes on."""
    run_dir, log = tmp_path / "run", tmp_path / "log"
    arguments = ["train", f"{recipe}:local", "--transport", "collective", "--run-dir", str(run_dir), *LONG]
    arguments[-1] = "1"
    child = runs.start(main, ([*arguments, "--sync.quorum", "1"],), log)
    wait_for_step(run_dir, 9, log)
    assert child.pid is not None
    os.kill(island_pids(child.pid)[1], signal.SIGKILL)
    assert runs.wait(child, log, 90) == 1, log.read_text()
    said = log.read_text()
    assert "island 1 was killed by SIGKILL" in said and "--resume auto" in said
    assert "island 0 was killed" not in said
    assert "Traceback" not in said
    assert runs.summary(run_dir)["status"] == "failed"
    common = [
        n
        for n in checkpoint.verified(run_dir / "checkpoints", 0)
        if n in checkpoint.verified(run_dir / "checkpoints", 1)
    ]
    assert common
    config = runs.small(corpus, run_dir, steps=3000)
    config = dataclasses.replace(config, sync=dataclasses.replace(config.sync, quorum=1.0))
    stop = (int(common[-1][:6]) + 2) * 4
    assert train(stop_at(resumed(config), stop)) == 3
    notes = {line["note"] for line in runs.metrics(run_dir) if line["event"] == "note"}
    (resumed_at,) = (int(n.rpartition(" ")[2]) for n in notes if n.startswith("resumed from checkpoint"))
    assert 8 <= resumed_at < stop == runs.summary(run_dir)["steps"], "what the other one had trained is kept"
