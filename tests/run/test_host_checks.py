"""Surroundings that torch answers with a traceback: one line, exit code 2, nothing started."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
from pathlib import Path

import pytest

from lowcomm.cli import main
from lowcomm.run.host_checks import check_compiler, check_home
from lowcomm.types import ConfigError
from tests.support import runs

RANK = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
WITH_MASTER = {**RANK, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*WITH_MASTER, "GLOO_SOCKET_IFNAME", "LOWCOMM_STORE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "corpus").mkdir()
    return f"{runs.write_recipe(tmp_path, runs.write_corpus(tmp_path / 'corpus'))}:local"


@pytest.mark.parametrize(
    ("variables", "start"),
    [
        ({"RANK": "0"}, "RANK = '0' is not allowed"),
        ({**RANK, "RANK": "one"}, "RANK = 'one' is not allowed"),
        ({**RANK, "RANK": "1"}, "RANK = '1' is not allowed: a whole number from 0 to 0"),
        ({**RANK, "RANK": "-1"}, "RANK = '-1' is not allowed"),
        ({**RANK, "WORLD_SIZE": "0"}, "WORLD_SIZE = '0' is not allowed"),
        ({**RANK, "LOCAL_RANK": ""}, "LOCAL_RANK = '' is not allowed"),
        (RANK, "MASTER_ADDR = None is not allowed"),
        ({**RANK, "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT = None is not allowed"),
        ({**WITH_MASTER, "MASTER_PORT": "70000"}, "MASTER_PORT = '70000' is not allowed"),
        ({**WITH_MASTER, "MASTER_PORT": "http"}, "MASTER_PORT = 'http' is not allowed"),
        ({**WITH_MASTER, "GLOO_SOCKET_IFNAME": "eth77"}, "GLOO_SOCKET_IFNAME = 'eth77' is not allowed: interfaces"),
        ({**WITH_MASTER, "GLOO_SOCKET_IFNAME": "lo,eth77"}, "GLOO_SOCKET_IFNAME = 'lo,eth77' is not allowed"),
        ({**WITH_MASTER, "GLOO_SOCKET_IFNAME": ""}, "GLOO_SOCKET_IFNAME = '' is not allowed"),
    ],
)
def test_what_a_launcher_should_have_set(
    variables: dict[str, str],
    start: str,
    recipe: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("lowcomm.run.ranks.follow_supervisor", lambda: None)  # this process has a parent of its own
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    arguments = ["train", recipe, "--transport", "collective", "--islands", "1", "--run-dir", str(tmp_path / "run")]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lowcomm: error: {start}") and "Fix: " in line
    assert not (tmp_path / "run").exists()


def test_a_port_that_another_program_uses(recipe: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        variables = {**WITH_MASTER, "MASTER_PORT": str(listening.getsockname()[1])}
        arguments = ["train", recipe, "--transport", "collective", "--islands", "1", "--run-dir", str(tmp_path / "run")]
        child = runs.start(main, (arguments,), tmp_path / "log", variables)
        assert runs.wait(child, tmp_path / "log") == 2
    said = (tmp_path / "log").read_text()
    lines = [line for line in said.splitlines() if line.startswith("lowcomm: error: ")]
    assert len(lines) == 1 and "could not join" in lines[0] and "MASTER_PORT" in lines[0], said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_without_a_home(monkeypatch: pytest.MonkeyPatch, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(ConfigError, match=f"user {os.getuid()} has no home directory. Fix: export HOME"):
        check_home()
    assert main(["simulate", recipe]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lowcomm: error: HOME is not set")


@pytest.mark.parametrize(
    ("on_gpu", "variable", "value"),
    [(False, "CXX", None), (False, "CXX", "no-such-g++ -O2"), (True, "CC", None), (True, "CC", "no-such-gcc")],
)
def test_compile_without_a_compiler(
    on_gpu: bool, variable: str, value: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    if value is not None:
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"model.compile = True is not allowed: False, as no C.* Fix: .*{variable}"):
        check_compiler(on_gpu)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler is here")
def test_compile_with_one() -> None:
    check_compiler(on_gpu=False)


def test_compile_for_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    compiler = tmp_path / "g++"
    compiler.touch()
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr("getpass.getuser", nobody)
    with pytest.raises(ConfigError, match="has no name"):
        check_compiler(on_gpu=False)
