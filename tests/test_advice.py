"""What a message says to do is done here, and works: no advice goes round in a circle."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from torch import Tensor

from lowcomm.cli import main
from lowcomm.config import CheckpointConfig, RunConfig
from lowcomm.trainer import train
from lowcomm.transport import Simulated
from lowcomm.types import LowcommError, TransportError
from tests.support import runs

Make = Callable[[RunConfig, pytest.MonkeyPatch], RunConfig]
"""Brings a run into a state; the configuration with which it is started next."""


def nothing(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    return dataclasses.replace(config, resume=True)


def with_checkpoint(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    stop = dataclasses.replace(config.checkpoint, stop_at_step=3)
    assert train(dataclasses.replace(config, checkpoint=stop)) == 3
    return config


def without_checkpoint(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """As kill -9 before the first checkpoint leaves it."""
    config.directory.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (config.directory / name).write_text("{}\n")
    return config


def resumed_without_checkpoint(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    return dataclasses.replace(without_checkpoint(config, monkeypatch), resume=True)


def torn(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    with_checkpoint(config, monkeypatch)
    (config.directory / "checkpoints/000000-stop0/island-00001/manifest.json").unlink()
    return dataclasses.replace(config, resume=True)


def a_sync_failed(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    def fail(self: Simulated, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
        monkeypatch.undo()
        raise TransportError("the line broke")

    monkeypatch.setattr(Simulated, "weighted_sum", fail)
    return config


def no_room_for_the_export(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    from transformers import LlamaForCausalLM

    def fail(*_: object) -> None:
        monkeypatch.undo()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", fail)
    return dataclasses.replace(config, checkpoint=CheckpointConfig(every_rounds=1))


def stopped(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    stop = dataclasses.replace(config.checkpoint, stop_at_step=3)
    return dataclasses.replace(config, checkpoint=stop)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize(
    "make",
    [
        *(nothing, with_checkpoint, without_checkpoint, resumed_without_checkpoint, torn, a_sync_failed),
        *(no_room_for_the_export, stopped),
    ],
)
def test_the_advice_about_resuming_works(
    make: Make, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = runs.small(corpus, tmp_path / "run", steps=4, checkpoint=CheckpointConfig(export=False))
    start = make(config, monkeypatch)
    capsys.readouterr()
    try:
        assert train(start) == 3
        said = capsys.readouterr().out
    except LowcommError as error:
        said = f"{capsys.readouterr().out}{error}"
    advice = re.findall(r"leave out --resume|--resume \w+", said)
    assert advice, said
    again = dataclasses.replace(config, checkpoint=dataclasses.replace(start.checkpoint, stop_at_step=None))
    for each in dict.fromkeys(advice):
        resume = {"leave out --resume": False, "--resume auto": "auto"}[each]
        assert train(dataclasses.replace(again, resume=resume)) == 0, said
    assert runs.summary(config.directory)["status"] == "done"


def test_every_message_that_says_resume_is_one_that_starts_or_continues() -> None:
    """`--resume` alone is refused where there is nothing to resume: messages name `--resume auto`, which never is."""
    for path in (runs.ROOT / "lowcomm").rglob("*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for found in re.finditer(r"--resume(?! auto)", line):
                known = ('"--resume"', "leave out --resume", "`--resume` alone", "`--resume True`")
                assert any(k in line for k in known), f"{path}:{number}: {line[found.start() :]}"


@pytest.mark.parametrize("flags", [["--resume", "auto"], ["--resume=auto"]])
def test_auto_starts_and_continues_from_the_command_line(flags: list[str], corpus: Path, tmp_path: Path) -> None:
    recipe = f"{runs.write_recipe(tmp_path, corpus)}:local"
    command = ["simulate", recipe, "--run-dir", str(tmp_path / "run"), "--steps", "4", *flags]
    assert main([*command, "--checkpoint.stop-at-step", "3"]) == 3
    assert main(command) == 0
    assert runs.summary(tmp_path / "run")["status"] == "done"


@pytest.mark.parametrize(
    ("flags", "resume"),
    [
        ([], False),
        (["--resume"], True),
        (["--resume", "--steps", "3"], True),
        (["--resume", "True"], True),
        (["--no-resume"], False),
        (["--resume", "auto"], "auto"),
    ],
)
def test_the_flag(flags: list[str], resume: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import lowcomm.trainer

    seen: list[RunConfig] = []
    monkeypatch.setattr(lowcomm.trainer, "train", lambda config, show: seen.append(config) or 3)
    assert main(["simulate", "diloco.py:smoke", *flags]) == 3
    assert seen[0].resume == resume


@pytest.mark.parametrize("flags", [["--resume", "yes"], ["--resume=perhaps"]])
def test_another_value_is_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "diloco.py:smoke", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lowcomm: error: ") and error.count("\n") == 1


def test_auto_in_the_directory_of_another_run_is_refused(corpus: Path, tmp_path: Path) -> None:
    """What it would go on from is of another configuration."""
    config = runs.small(corpus, tmp_path / "run", steps=4)
    with_checkpoint(config, pytest.MonkeyPatch())
    with pytest.raises(LowcommError, match=r"seed = 1 \(stored: 0\)"):
        train(dataclasses.replace(config, seed=1, resume="auto"))
