"""Who can read what a run leaves behind, and that no model directory has its code run."""

from __future__ import annotations

import ast
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lowcomm import checkpoint
from lowcomm.federation.keys import make_node
from lowcomm.model import ModelConfig, build_model
from lowcomm.planner.inputs import model_of
from lowcomm.private_files import make_directory
from lowcomm.run.run_dir import lock
from lowcomm.types import ConfigError
from tests.support import runs

CODE = """
from pathlib import Path
Path({mark!r}).touch()
class Config: pass
class Model: pass
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_checkpoints_are_for_their_owner(umask: int, tmp_path: Path) -> None:
    parts: dict[str, checkpoint.Part] = {
        "island": ({"w": torch.zeros(3)}, {"privacy": {"key": "secret"}}),
        "global": ({}, {}),
    }
    root = tmp_path / "run" / "checkpoints"
    checkpoint.save(root, "000001", 0, parts, "session")
    everything = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
    assert len([path for path in everything if path.is_file()]) == 5
    assert {mode(path) for path in everything if path.is_dir()} == {0o700}
    assert {mode(path) for path in everything if path.is_file()} == {0o600}
    assert "island" in checkpoint.load(root, "000001", 0)


def test_a_run_directory_is_for_its_owner(umask: int, tmp_path: Path) -> None:
    with lock(tmp_path / "runs" / "name", 0, False):
        assert mode(tmp_path / "runs") == mode(tmp_path / "runs" / "name") == 0o700


def test_a_whole_run_in_a_directory_that_was_there(tmp_path: Path) -> None:
    corpus, run = tmp_path / "corpus", tmp_path / "run"
    corpus.mkdir()
    run.mkdir(mode=0o755)
    before = os.umask(0)
    try:
        assert runs.train(runs.small(runs.write_corpus(corpus), run, steps=4)) == 0
    finally:
        os.umask(before)
    assert mode(run) == 0o755  # that is its maker's business
    private = [run / "metrics.jsonl", *(path for path in (run / "checkpoints").rglob("*") if path.is_file())]
    assert {mode(path) for path in private} == {0o600}
    assert {mode(path) for path in (run / "checkpoints").rglob("*") if path.is_dir()} == {0o700}


def test_a_directory_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    make_directory(tmp_path / "there" / "a" / "b")
    assert [mode(tmp_path / "there" / p) for p in (".", "a", "a/b")] == [0o755, 0o700, 0o700]


def test_keys_of_a_node_are_for_their_owner(umask: int, tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    make_node(tmp_path / "keys")
    assert mode(tmp_path / "keys") == 0o700
    assert not mode(tmp_path / "keys" / "node.key") & 0o077


@pytest.fixture
def with_code(tmp_path: Path) -> Path:
    """A model directory whose type only its own code knows."""
    directory = tmp_path / "model"
    directory.mkdir()
    named = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.Config", None]}
    (directory / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": named}), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps({"auto_map": named}), encoding="utf-8")
    (directory / "own.py").write_text(CODE.format(mark=str(tmp_path / "ran")), encoding="utf-8")
    return directory


def test_the_code_of_a_model_directory_is_never_run(
    with_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would ask on standard input, where a pipe may answer."""
    from lowcomm.data import HFTokenizer

    def ask(prompt: str = "") -> str:
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr("builtins.input", ask)
    says = r"it asks for code of its own \(auto_map: .*own\.Model.*\), which is never run"
    with pytest.raises(ConfigError, match=rf"model\.directory = .* {says}") as caught:
        build_model(ModelConfig(directory=with_code), vocab_size=8, max_tokens=8, seed=0, eos_id=0)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=rf"--config = .* {says}"):
        model_of(None, None, with_code)
    with pytest.raises(ConfigError, match=r"tokenizer\.path"):
        HFTokenizer(path=with_code).load(lambda: iter(()), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_every_call_that_loads_says_that_no_code_is_run() -> None:
    """One that does not say so asks on standard input."""
    seen = 0
    for path in [*(runs.ROOT / "lowcomm").rglob("*.py"), *(runs.ROOT / "recipes").rglob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and re.search(r"\bAuto\w+\.from_\w+$", ast.unparse(call.func)):
                seen += 1
                named = {keyword.arg for keyword in call.keywords}
                assert named & {"trust_remote_code", None}, f"{path}:{call.lineno}"  # None: a dict of them
    assert seen >= 6
