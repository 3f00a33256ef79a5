"""The layout and style rules that a reviewer should not have to check by eye."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = (
    "schedule", "local", "privacy", "codec", "topology", "transport", "aggregate",
    "outer", "island", "model", "data", "plan", "report", "sampling", "secure", "attack", "arrival",
    "mixing",
)  # fmt: skip
SIZED = ("lowcomm", "kernels", "recipes", "benchmarks")
HEAVY = ("transformers", "peft", "deepspeed", "triton", "datasets", "plotly")
MAX_FUNCTION_LINES = 50
MAX_FILE_LINES = 300


def _sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _package(path: Path, top: Path) -> list[str]:
    """Dotted parts of the package that `path` (a module or an __init__) lives in."""
    return list(path.relative_to(top).parent.parts)


def imported_modules(tree: ast.Module, package: list[str]) -> list[str]:
    """Absolute dotted names of everything imported anywhere in the file, relative imports resolved.

    `from a import b` gives "a.b": b may be a module.
    """
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *(node.module.split(".") if node.module else [])])
            names += [f"{prefix}.{alias.name}" if prefix else alias.name for alias in node.names]
    return names


def illegal_imports(tree: ast.Module, package: list[str]) -> list[str]:
    """Imports of a stage file that reach another stage or the top of lowcomm."""
    own = ".".join(package[:2])
    legal = ("lowcomm.types", own)
    return [
        name
        for name in imported_modules(tree, package)
        if name.split(".")[0] == "lowcomm" and not any(name == ok or name.startswith(f"{ok}.") for ok in legal)
    ]


def broken_style(tree: ast.Module) -> list[str]:
    """`line: what` for pickle, unsafe torch.load, ** parameters without names, and swallowed exceptions."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            if {m.split(".")[0] for m in modules} & {"pickle", "cPickle", "dill", "cloudpickle"}:
                found.append((node.lineno, "pickle"))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            safe = [k for k in node.keywords if k.arg == "weights_only" and ast.unparse(k.value) == "True"]
            if not safe:
                found.append((node.lineno, "torch.load without weights_only=True"))
        elif (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            and node.args.kwarg
            and not ast.unparse(node.args.kwarg.annotation or node.args.kwarg).startswith("Unpack[")
        ):
            found.append((node.lineno, f"**{node.args.kwarg.arg}"))
        elif isinstance(node, ast.Attribute) and node.attr.endswith(("_object_list", "_object", "_objects")):
            if ast.unparse(node.value) in ("dist", "torch.distributed", "distributed"):
                found.append((node.lineno, f"{node.attr} pickles"))
        elif isinstance(node, ast.ExceptHandler) and (
            node.type is None or (ast.unparse(node.type) in ("Exception", "BaseException") and _is_pass(node.body))
        ):
            found.append((node.lineno, "an exception is swallowed"))
    return [f"{line}: {what}" for line, what in sorted(found)]


def _is_pass(body: list[ast.stmt]) -> bool:
    return all(isinstance(node, ast.Pass) or ast.unparse(node) == "..." for node in body)


def long_functions(tree: ast.Module) -> list[str]:
    return [
        f"{node.name}: {lines} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_stage_exists() -> None:
    missing = [stage for stage in STAGES if not (ROOT / "lowcomm" / stage / "__init__.py").is_file()]
    assert not missing


def test_stages_do_not_import_each_other() -> None:
    bad = {
        str(path.relative_to(ROOT)): names
        for path in _sources(*(f"lowcomm/{stage}" for stage in STAGES))
        if (names := illegal_imports(_tree(path), _package(path, ROOT)))
    }
    assert not bad, f"a stage may import lowcomm.types, lowcomm_kernels and its own package: {bad}"


def test_kernels_import_nothing_of_lowcomm() -> None:
    paths = _sources("kernels/lowcomm_kernels")
    bad = {
        str(path.relative_to(ROOT)): names
        for path in paths
        if (
            names := [
                name
                for name in imported_modules(_tree(path), _package(path, ROOT / "kernels"))
                if name.split(".")[0] == "lowcomm"
            ]
        )
    }
    assert paths
    assert not bad


def test_kernels_folder_is_no_package() -> None:
    assert (ROOT / "kernels" / "lowcomm_kernels").is_dir()
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_every_folder_of_the_package_has_an_init() -> None:
    """find_packages skips a folder without one, and the wheel would lack it."""
    folders = {path.parent for path in _sources("lowcomm", "kernels/lowcomm_kernels")}
    assert not [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()]


def test_import_lowcomm_is_light() -> None:
    code = (
        "import sys; sys.path[:0] = ['.', 'kernels']; import lowcomm\n"
        f"print(sorted({{m.partition('.')[0] for m in sys.modules}} & set({HEAVY!r})))"
    )
    assert _run(code).strip() == "[]"


def test_what_only_starts_others_loads_no_torch() -> None:
    """The command line, the launcher of ranks and the commands of a federation would each take seconds for it."""
    code = (
        "import sys; sys.path[:0] = ['.', 'kernels']; import lowcomm.cli, lowcomm.run.ranks\n"
        "import lowcomm.federation.command, lowcomm.federation.keys, lowcomm.federation.submit, lowcomm.report.html\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    assert _run(code).strip() == "False False"


def test_what_is_imported_late_is_there() -> None:
    import lowcomm

    assert all(hasattr(lowcomm, name) for name in lowcomm.__all__)
    assert set(dir(lowcomm)) == set(lowcomm.__all__)
    assert not hasattr(lowcomm, "Optimiser")


def test_transformers_imports_from_the_repo_root() -> None:
    """transformers imports Hugging Face's `kernels` when it finds one; our folder must never be taken for it."""
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "try:\n    import kernels\nexcept ImportError:\n    print('none')\n"
        "else:\n    print(getattr(kernels, '__file__', None) or 'namespace')"
    )
    found = _run(code).strip().splitlines()[-1]
    assert not found.startswith(str(ROOT / "kernels"))


@pytest.mark.parametrize("folder", SIZED)
def test_files_and_functions_are_short(folder: str) -> None:
    for path in _sources(folder):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT)
        assert len(text.splitlines()) <= MAX_FILE_LINES, name
        assert not long_functions(ast.parse(text)), name


def test_style_of_every_file() -> None:
    bad = {str(path.relative_to(ROOT)): found for path in _sources(*SIZED) if (found := broken_style(_tree(path)))}
    assert not bad


def test_every_file_has_postponed_annotations_and_a_docstring() -> None:
    for path in _sources("lowcomm", "recipes"):
        tree = _tree(path)
        if not tree.body:  # an empty __init__
            continue
        name = path.relative_to(ROOT)
        assert ast.get_docstring(tree), f"{name} does not say what it is"
        if any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body):
            assert "__future__.annotations" in imported_modules(tree, []), name


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from lowcomm.codec import Int8", ["lowcomm.codec.Int8"]),
        ("from .. import codec", ["lowcomm.codec"]),
        ("from ..codec.int8 import Int8", ["lowcomm.codec.int8.Int8"]),
        ("def f():\n    import lowcomm.sync", ["lowcomm.sync"]),
        ("from lowcomm import sync", ["lowcomm.sync"]),
        ("from lowcomm.types import Delta\nfrom lowcomm import types\nfrom . import mean\nimport torch", []),
        ("import lowcomm_kernels.topk\nfrom lowcomm.aggregate.mean import Mean", []),
        ("from lowcomm.typesx import Delta", ["lowcomm.typesx.Delta"]),
    ],
)
def test_the_import_check_sees(source: str, expected: list[str]) -> None:
    assert illegal_imports(ast.parse(source), ["lowcomm", "aggregate"]) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle", ["1: pickle"]),
        ("from pickle import loads", ["1: pickle"]),
        ("torch.load(p)", ["1: torch.load without weights_only=True"]),
        ("torch.load(p, weights_only=False)", ["1: torch.load without weights_only=True"]),
        ("torch.load(p, weights_only=True)", []),
        ("def f(**kwargs): ...", ["1: **kwargs"]),
        ("def f(**others: int): ...", ["1: **others"]),
        ("def f(**others: Unpack[Arguments]): ...", []),
        ("f(**kwargs)", []),
        ("dist.all_gather_object(a, b)", ["1: all_gather_object pickles"]),
        ("try:\n    f()\nexcept:\n    g()", ["3: an exception is swallowed"]),
        ("try:\n    f()\nexcept Exception:\n    pass", ["3: an exception is swallowed"]),
        ("try:\n    f()\nexcept OSError:\n    pass", []),
    ],
)
def test_the_style_check_sees(source: str, expected: list[str]) -> None:
    assert broken_style(ast.parse(source)) == expected


def test_the_length_check_sees() -> None:
    body = "\n".join(["    x = 1"] * MAX_FUNCTION_LINES)
    assert long_functions(ast.parse(f"def f():\n{body}")) == ["f: 51 lines"]
    assert not long_functions(ast.parse(f"def f():\n{body}".removesuffix("\n    x = 1")))
