"""The wheel carries what a user needs, and pyproject.toml, Makefile and constraints agree."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from lowcomm.doctor.host import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.py") if not path.name.startswith("_"))


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0]


def build_wheel(folder: Path) -> Path:
    """Built in this folder, from a copy: setuptools leaves build/ and egg-info beside its sources."""
    source = folder / "source"
    ignore = shutil.ignore_patterns(
        ".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "results"
    )
    shutil.copytree(ROOT, source, ignore=ignore)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(folder.glob("lowcomm-*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build_wheel(tmp_path_factory.mktemp("wheel")))


def test_wheel_has_every_source_file_and_no_more(wheel: zipfile.ZipFile) -> None:
    expected = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for package, folder in (
            ("lowcomm", "lowcomm"), ("lowcomm_kernels", "kernels/lowcomm_kernels"), ("lowcomm_recipes", "recipes"),
        )
        for path in (ROOT / folder).rglob("*.py")
    }  # fmt: skip
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name for name in shipped if name.endswith(".py")} == expected
    assert {name.split("/")[0] for name in shipped} <= {"lowcomm", "lowcomm_kernels", "lowcomm_recipes"}
    assert any(name.startswith("lowcomm_recipes/") for name in shipped)


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    entry_points = configparser.ConfigParser()
    entry_points.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert dict(entry_points["console_scripts"]) == {"lowcomm": "lowcomm.cli:main"}
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    provided = set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE))
    assert provided >= {"peft", "deepspeed", "kernels", "report", "elastic", "flower", "dev"}


def test_wheel_imports_outside_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import lowcomm, lowcomm.doctor.command, lowcomm_kernels, lowcomm_recipes\n"
        "from importlib.resources import files\n"
        "print(lowcomm.__file__, sorted(p.name for p in files('lowcomm_recipes').iterdir()))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stdout
    assert all(path.name in done.stdout for path in RECIPES)


def test_extras_are_those_of_the_doctor() -> None:
    """`lowcomm doctor` says which extra is missing, so its table must be the one that pip sees."""
    extras = PROJECT["project"]["optional-dependencies"]
    assert {name: tuple(map(_name, wanted)) for name, wanted in extras.items() if name != "dev"} == EXTRAS


def test_every_requirement_of_a_developer_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", pin) for pin in pins)
    pinned = {_name(pin).lower().replace("_", "-") for pin in pins}
    assert len(pinned) == len(pins)
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = PROJECT["project"]["dependencies"] + extras["dev"]
    brought = ("data", "kernels", "codecs", "peft", "report", "hf", "lightning", "deepspeed", "optimizers", "docs")
    wanted += [r for extra in brought for r in extras[extra]]
    names = {_name(requirement).lower().replace("_", "-") for requirement in wanted} - {"lowcomm"}
    assert names <= pinned


def test_torch_is_the_same_in_makefile_and_constraints() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pin = next(line for line in constraints if line.startswith("torch=="))
    assert f"TORCH := {pin}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_licence_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_make_train_runs_the_recipe_that_the_readme_promises() -> None:
    """`make -n` prints what would run; -o takes the installation as done."""
    make = shutil.which("make")
    assert make is not None
    command = [make, "--no-print-directory", "-n", "-o", ".venv/.lowcomm-installed", "train"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(".venv/bin/lowcomm train recipes/diloco.py:pretrain_cpu --islands 4 --run-dir runs/")
    assert "pretrain_cpu" in _public_functions(ROOT / "recipes" / "diloco.py")


def _public_functions(path: Path) -> dict[str, str | None]:
    """Name -> docstring of the functions that `lowcomm recipes` lists."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name: ast.get_docstring(node)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def test_recipes_are_a_package() -> None:
    """Without an __init__ importlib.resources cannot list the recipes of an editable installation."""
    assert (ROOT / "recipes" / "__init__.py").is_file()


def test_there_are_recipes() -> None:
    assert {"diloco", "ddp"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_a_smoke_and_one_line_each(path: Path) -> None:
    functions = _public_functions(path)
    assert "smoke" in functions
    for name, doc in functions.items():
        assert doc and "\n" not in doc.strip(), f"{path.name}:{name} needs a docstring of one line"
        assert len(doc) <= 120, f"{path.name}:{name}: `lowcomm recipes` lists it on one line"
