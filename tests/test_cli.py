"""The command line: help, recipes, report, doctor, exit codes."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lowcomm import recipe, version
from lowcomm.cli import main
from lowcomm.config import RunConfig
from lowcomm.types import ConfigError
from tests.support import runs

PACKAGES = ("data", "island", "schedule", "outer", "codec", "aggregate", "attack", "model")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_corpus(tmp_path_factory.mktemp("corpus"))


def config_classes() -> list[type]:
    """Every public dataclass that a run is configured with."""
    modules = [importlib.import_module("lowcomm.config")]
    modules += [importlib.import_module(f"lowcomm.{name}") for name in PACKAGES]
    found = {
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and dataclasses.is_dataclass(value) and not value.__name__.startswith("_")
    }
    return sorted((c for c in found if c.__dataclass_params__.frozen), key=lambda c: c.__qualname__)  # type: ignore[attr-defined]


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        for command in ("train", "simulate", "plan", "report", "recipes", "recipes copy", "doctor"):
            assert f"lowcomm {command}" in shown
        assert "Exit codes: 0 done, 1 failed, 2 bad input" in shown
        assert max(map(len, shown.splitlines())) <= 120
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lowcomm {version.__version__}\n"


@pytest.mark.parametrize("arguments", [["fly"], ["train"], ["simulate"], ["recipes", "fly"], ["recipes", "copy"]])
def test_wrong_commands(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("lowcomm: error: ") and error.count("\n") == 1
    assert "recipes" in error


def help_of(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["train", "--help"], ["train", "diloco.py:warmup", "--help"]])
def test_every_flag_has_help(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """Each flag is followed by at least three words of explanation; all fields of a run are there."""
    shown = re.sub(r"[│╭╮╰╯─|]|--+(?![a-z])", " ", help_of(capsys, arguments))
    flags = list(re.finditer(r"^ *(?:-h, )?--([a-z][a-z0-9.-]*)(.*)$", shown, re.MULTILINE))
    assert len(flags) > 35
    for flag, following in zip(flags, [*flags[1:], None], strict=True):
        text = shown[flag.end() : following.start() if following else None]
        words = re.sub(r"\(default:.*", "", " ".join(text.split()))
        assert len(words.split()) >= 3, f"{flag[0]}: {words!r}"
    wanted = {"islands", "transport", "steps", "seed", "run-dir", "resume", "sync.every", "inner.optimizer.lr"}
    assert wanted <= {flag[1] for flag in flags}


UNIT = re.compile(
    r"step|token|round|island|sequence|file|byte|second|fraction|part of|decay|rate|norm|seed|number|directory|name|"
    r"path|pattern|thread|checkpoint|column|unit|None|shape|weight|momentum|micro-batch|bits|element|rank|[0-9]",
    re.IGNORECASE,
)


@pytest.mark.parametrize("cls", config_classes(), ids=lambda c: c.__qualname__)
def test_every_field_says_what_it_is_in_which_unit(cls: type) -> None:
    """Numbers, paths and names of every class that a recipe may use: a docstring with a unit or a range."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef) and ast.get_docstring(tree)
    body = tree.body
    for i, node in enumerate(body):
        if not isinstance(node, ast.AnnAssign):
            continue
        kind = ast.unparse(node.annotation)
        name = f"{cls.__qualname__}.{ast.unparse(node.target)}"
        following = body[i + 1] if i + 1 < len(body) else None
        text = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = str(following.value.value)
        if re.search(r"\b(int|float|str|Path|bool|Literal)\b", kind) and "ClassVar" not in kind:
            assert text, f"{name} has no help"
        if re.search(r"\b(int|float)\b", kind) and "ClassVar" not in kind:
            assert UNIT.search(text), f"{name} has no unit or range: {text!r}"


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert {"diloco.py:smoke", "diloco.py:pretrain", "ddp.py:smoke"} <= set(names)
    assert names == sorted(names, key=lambda n: n.split(":")[0])
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


@pytest.mark.parametrize("name", [info.name for info in recipe.packaged()])
def test_recipes_load_and_pass_the_checks(name: str) -> None:
    from lowcomm.config_check import check

    config = recipe.load(name)
    assert isinstance(config, RunConfig)
    if config.sync.attack is not None:
        with pytest.raises(
            ConfigError, match=r"sync\.attack = .* Fix: pass --sync\.allow-attack, or leave sync\.attack out"
        ):
            check(config, config.islands or 4)
        config = dataclasses.replace(config, sync=dataclasses.replace(config.sync, allow_attack=True))
    check(config, config.islands or 4)


def test_recipe_is_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "diloco"]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'diloco.py'}\n"
    copied = tmp_path / "diloco.py"
    assert copied.read_bytes() == (recipe.packaged_directory() / "diloco.py").read_bytes()
    copied.write_text(copied.read_text(encoding="utf-8").replace("steps=96", "steps=97"), encoding="utf-8")
    assert recipe.load("diloco.py:smoke").steps == 97  # the copy, not the packaged one
    assert main(["recipes", "copy", "diloco.py:smoke"]) == 2
    assert "exists already. Fix: " in capsys.readouterr().err
    assert "steps=97" in copied.read_text(encoding="utf-8")
    assert main(["recipes", "copy", "../diloco"]) == 2
    assert "there is no recipe '../diloco'. Fix: use one of " in capsys.readouterr().err


def test_installed_elsewhere(tmp_path: Path) -> None:
    """As a wheel lays it out: the recipes are found as lowcomm_recipes, from any directory, without the checkout."""
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    packages = {"lowcomm": "lowcomm", "recipes": "lowcomm_recipes", "kernels/lowcomm_kernels": "lowcomm_kernels"}
    for source, name in packages.items():
        shutil.copytree(runs.ROOT / source, site / name, ignore=ignore)
    for arguments, words in (
        (["recipes"], "diloco.py:smoke"),
        (["recipes", "copy", "ddp"], f"wrote {work / 'ddp.py'}"),
    ):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "lowcomm.cli", *arguments],
            cwd=work,
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
    found = "import lowcomm.recipe as r; print(r.packaged_directory()); print(r.load('recipes/diloco.py:smoke').steps)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", found],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [str(site / "lowcomm_recipes"), "96"], done.stderr


def test_simulate_shows_table_and_report(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reference = f"{runs.write_recipe(tmp_path, corpus)}:local"
    assert main(["simulate", reference, "--islands", "3", "--steps", "8", "--seed", "5", "--name", "mine"]) == 0
    shown = capsys.readouterr().out
    assert "mine" in shown and "done" in shown and "report: " in shown
    run_dir = Path("runs/mine")
    assert (run_dir / "report.html").is_file()
    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    assert (config["islands"], config["steps"], config["seed"]) == (3, 8, 5)
    assert main(["simulate", reference, "--name", "mine"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    stopped = ["simulate", reference, "--run-dir", "other", "--checkpoint.stop-at-step", "5"]
    assert main(stopped) == 3
    assert "stopped (stop_at_step) at inner step 5, saved as 000001-stop0" in capsys.readouterr().out
    assert not Path("other/report.html").exists()
    assert main(["report", str(run_dir), "other", "--out", "both.html"]) == 0
    page = Path("both.html").read_text(encoding="utf-8")
    assert "mine" in page and "stopped" in page
    assert "report: both.html" in capsys.readouterr().out


def test_report_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lowcomm: error: ") and error.count("\n") == 1 and "nothing" in error


def test_doctor_writes_its_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json", str(tmp_path / "doctor.json"), "--run-dir", str(tmp_path)])
    assert code in (0, 1)
    assert json.loads((tmp_path / "doctor.json").read_text(encoding="utf-8"))
    assert "torch" in capsys.readouterr().out


def test_one_island_trains_here(tmp_path: Path, corpus: Path) -> None:
    """`train --islands 1` needs no launcher; its sync moves nothing."""
    reference = f"{runs.write_recipe(tmp_path, corpus)}:local"
    arguments = ["--transport", "collective", "--islands", "1", "--run-dir", str(tmp_path / "run")]
    assert main(["train", reference, *arguments]) == 0
    summary = runs.summary(tmp_path / "run")
    assert (summary["status"], summary["islands"], summary["bytes_sent"]) == ("done", 1, 0)
