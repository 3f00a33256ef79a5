"""The shape of the package: no import circle, nothing that takes a whole LocalSGD."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.structure import circles, graph, takers

ROOT = Path(__file__).resolve().parents[1]


def test_files_in_import_circles() -> None:
    assert circles(graph(ROOT)) == []


def test_functions_that_take_a_whole_local_sgd() -> None:
    assert takers(ROOT, "LocalSGD") == []


def test_tests_mirror_the_package() -> None:
    """A test lies in the folder of what it is about; those of several folders lie above, helpers in `support`."""
    folders = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and any(p.glob("*.py"))}
    packages = {p.parent.name for p in (ROOT / "lowcomm").glob("*/__init__.py")}
    assert folders - packages == {"benchmarks", "launch", "lowcomm_kernels", "support"}
    helpers = [p for folder in folders - {"support"} for p in (ROOT / "tests" / folder).glob("[!t]*.py")]
    assert not [p.name for p in helpers if not p.name.startswith("test_")]


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"__init__": "", **files}.items():
        path = root / "lowcomm" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a": "from lowcomm.b import f", "b": "import lowcomm.a"}, ["lowcomm.a", "lowcomm.b"]),
        ({"a": "from lowcomm import b", "b": "from lowcomm.c import x", "c": "from lowcomm import a"}, ["a", "b", "c"]),
        ({"a": "if TYPE_CHECKING:\n    from lowcomm.b import B", "b": "from . import a"}, ["a", "b"]),
        ({"a": "try:\n    import x\nexcept ImportError:\n    from .b import y", "b": "from .a import f"}, ["a", "b"]),
        ({"p/__init__": "from lowcomm.p.q import f", "p/q": "from lowcomm.p import g"}, ["p", "p.q"]),
        ({"p/__init__": "from .q import f", "p/q": "from ..a import g", "a": "import lowcomm.p"}, ["a", "p", "p.q"]),
        ({"a": "from lowcomm.b import f", "b": "def f():\n    import lowcomm.a"}, []),
        ({"a": "from lowcomm.b import f", "b": "from lowcomm.c import f", "c": "import torch"}, []),
    ],
)
def test_circles_are_seen(tmp_path: Path, files: dict[str, str], expected: list[str]) -> None:
    found = [name for circle in circles(graph(write(tmp_path, files))) for name in circle]
    assert found == [name if name.startswith("lowcomm") else f"lowcomm.{name}" for name in expected]


@pytest.mark.parametrize(
    ("signature", "taken"),
    [
        ("sync: LocalSGD", True),
        ("*, sync: 'LocalSGD'", True),
        ("sync: 'LocalSGD | None' = None", True),
        ("syncs: Sequence[sync.LocalSGD]", True),
        ("sync: LocalSGDs", False),
        ("sync", False),
    ],
)
def test_takers_are_seen(tmp_path: Path, signature: str, taken: bool) -> None:
    source = f"class C:\n    def f(self, {signature}) -> LocalSGD: ...\n"
    assert takers(write(tmp_path, {"a": source}), "LocalSGD") == (["lowcomm/a.py:2 f"] if taken else [])
