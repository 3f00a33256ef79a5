"""Bad input of runs over a store: one line with the fix, exit code 2, nothing started and nothing lost."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lowcomm.aggregate.lora import FlexLoRA, FLoRA
from lowcomm.cli import main
from lowcomm.codec import ErrorFeedback, Int4, Rqm, Sign
from lowcomm.config import RunConfig, SyncConfig
from lowcomm.config_file import to_dict
from lowcomm.exchange.buffered import Buffered
from lowcomm.exchange.store import Store
from lowcomm.local import Scaffold
from lowcomm.privacy import ClientGaussian
from lowcomm.sampling import FixedSize
from lowcomm.schedule import Growing, OneStepDelay
from lowcomm.secure import SecureSum
from lowcomm.store import keys
from lowcomm.store.run_file import RunFile
from lowcomm.storerun.checks import check_store_run
from lowcomm.storerun.plan import with_store
from lowcomm.types import ConfigError
from tests.support.members import make_member, make_run, store_config
from tests.support.runs import write_corpus

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store with a run, and the text that it is of."""
    root = tmp_path_factory.mktemp("made")
    (root / "text").mkdir()
    corpus = write_corpus(root / "text")
    make_run(root / "store", store_config(corpus))
    return root / "store", corpus


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that is refused."""
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "Fix: " in lines[0], lines
    return lines[0]


def test_addresses(tmp_path: Path, made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    store, _ = made
    for command in ("join", "status", "log", "verify", "stop"):
        assert "no such directory" in refused(capsys, command, str(tmp_path / "nowhere"))
        assert "holds no run" in refused(capsys, command, str(tmp_path))
        assert "s3://" in refused(capsys, command, "ftp://host/run")
    line = refused(capsys, "join", "s3://key:secret@bucket/run")
    assert "secret" not in line and "environment" in line
    assert "read" in refused(capsys, "join", str(store))  # the text's path was not allowed


def test_what_all_members_have_alike_is_no_flag(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    store, corpus = made
    for flag, value in (("--sync.every", "8"), ("--seed", "3"), ("--data.seq-len", "16"), ("--steps", "99")):
        assert "for all its members" in refused(capsys, "join", str(store), "--allow", str(corpus), flag, value)
    assert "a-z" in refused(capsys, "join", str(store), "--name", "Site A")
    tensor = ("--island.size", "2", "--island.kind", "tensor")
    assert "columns" in refused(capsys, "join", str(store), "--allow", str(corpus), *tensor)


def test_another_run_in_the_place(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    store, corpus = made
    with pytest.raises(ConfigError, match=r"holds another run .* steps differs"):
        make_run(store, store_config(corpus, steps=16))
    make_run(store, store_config(corpus))  # the same one: taken as it is


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer_sha256": "0" * 64}, "tokenizer"),
        ({"data": {"sha256": "0" * 64}}, "the training text"),
        ({"fragments": ((("x", (2, 2), "float32"),),)}, "the model"),
    ],
)
def test_a_joiner_with_something_else(
    tmp_path: Path, made: tuple[Path, Path], change: dict[str, Any], message: str
) -> None:
    store, _ = made
    copy = tmp_path / "store"
    copy.mkdir()
    run = RunFile.read((store / keys.RUN).read_bytes())
    change = {k: {**run.data, **v} if k == "data" else v for k, v in change.items()}
    (copy / keys.RUN).write_bytes(dataclasses.replace(run, **change).write())
    with pytest.raises(ConfigError, match=message) as error:
        make_member(copy, tmp_path / "run", "a")
    assert "Fix" in str(error.value)


def test_code_in_the_place_of_settings(tmp_path: Path, made: tuple[Path, Path], capsys: Any) -> None:
    store, _ = made
    run = RunFile.read((store / keys.RUN).read_bytes())
    values = json.loads(json.dumps(run.configuration))
    values["data"]["source"] = {"type": "os.system", "command": "touch pwned"}
    (tmp_path / "run.json").write_bytes(dataclasses.replace(run, configuration=values).write())
    assert "settings class" in refused(capsys, "join", str(tmp_path))
    (tmp_path / "run.json").write_bytes(b"{}")
    assert "another format" in refused(capsys, "join", str(tmp_path))


@pytest.mark.parametrize(
    ("sync", "why"),
    [
        ({"secure": SecureSum()}, "one sum"),
        ({"privacy": ClientGaussian(clip=1.0, noise_multiplier=1.0)}, "noise|weight"),
        ({"sampling": FixedSize(count=1)}, "come and go"),
        ({"local_steps": (1, 2)}, "no numbers"),
        ({"objective": Scaffold()}, "second exchange"),
        ({"schedule": Growing()}, "whole blocks"),
        ({"schedule": OneStepDelay()}, "whole blocks"),
        ({"codec": Rqm(clip=1.0)}, "noise"),
        ({"codec": Sign(vote=True)}, "sum on the way"),
        ({"aggregator": FLoRA(rank=4)}, "base weights|rate"),
        ({"aggregator": FlexLoRA(rank=4)}, "basis|rate"),
        ({"exchange": Store(block_steps=3)}, "divisor"),
        ({"exchange": Store(patience_s=-1.0)}, "positive"),
        ({"exchange": Buffered()}, "has its own"),
    ],
)
def test_what_does_not_go_over_a_store(sync: dict[str, Any], why: str) -> None:
    config = RunConfig(islands=2, sync=dataclasses.replace(SyncConfig(exchange=Store()), **sync))
    with pytest.raises(ConfigError) as error:
        check_store_run(with_store(config, "x"), 2)
    assert re.search(why, str(error.value)) and "Fix: " in str(error.value)


def test_credentials_are_in_no_file(made: tuple[Path, Path]) -> None:
    store, corpus = made
    config = with_store(store_config(corpus, sync=SyncConfig(codec=ErrorFeedback(codec=Int4()))), "s3://bucket/run")
    assert "store" in to_dict(config)
    assert "s3://" not in (store / keys.RUN).read_text(encoding="ascii")
    assert str(store) not in (store / keys.RUN).read_text(encoding="ascii")


def test_a_store_recipe_without_a_store(capsys: pytest.CaptureFixture[str]) -> None:
    """Its islands would train apart without a word."""
    assert "--store" in refused(capsys, "train", str(RECIPES / "store.py:smoke"), "--islands", "2")
    assert "--store" in refused(capsys, "simulate", str(RECIPES / "store.py:smoke"))


def test_where_a_store_run_can_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, store = str(RECIPES / "store.py:smoke"), ("--store", str(tmp_path / "store"))
    assert "simulated" in refused(capsys, "simulate", recipe, *store)
    assert "stop_at_step" in refused(capsys, "train", recipe, *store, "--checkpoint.stop-at-step", "8")
    assert "eval.clients" in refused(capsys, "train", recipe, *store, "--eval.clients", "--data.sharding", "by_folder")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "torchrun" in refused(capsys, "train", recipe, *store)
    assert not (tmp_path / "store").exists()
