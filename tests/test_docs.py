"""Documentation that is true: it builds without a warning, and every command block runs or says why it can't."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*(DOCS / "pages").glob("*.md"), ROOT / "README.md", ROOT / "launch" / "sites" / "README.md"])
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+) -->\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
TESTED_ELSEWHERE = {"diff"}
"""tests/test_readme.py runs it."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: its language, what is in it, and the reason if it is not run."""

    kind: str
    code: str
    reason: str | None


def blocks(path: Path) -> Iterator[Block]:
    for match in BLOCK.finditer(path.read_text(encoding="utf-8")):
        yield Block(kind=match["kind"], code=match["code"], reason=match["reason"])


def environment(directory: Path) -> dict[str, str]:
    """A `lowcomm` on the path, as an installation has it."""
    tool = directory / "lowcomm"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m lowcomm.cli "$@"\n', encoding="utf-8")
    tool.chmod(0o755)
    path = f"{directory}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_block_runs_or_says_why_not(path: Path) -> None:
    for block in blocks(path):
        runs = block.kind in ("python", "bash", *TESTED_ELSEWHERE)
        assert runs != (block.reason is not None), f"{path.name}: run it, or say why not:\n{block.code}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [p for p in PAGES if any(b.kind == "bash" and not b.reason for b in blocks(p))], ids=lambda p: p.stem
)
def test_shell_blocks_run(path: Path, tmp_path: Path) -> None:
    """All blocks of a page in one directory, in their order, where launch/ and recipes/ are as in a checkout."""
    for name in ("launch", "recipes", "lowcomm", "kernels"):
        (tmp_path / name).symlink_to(ROOT / name)
    code = "\n".join(block.code for block in blocks(path) if block.kind == "bash")
    (tmp_path / "bin").mkdir()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=tmp_path,
        env=environment(tmp_path / "bin"),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("path", [p for p in PAGES if any(b.kind == "python" for b in blocks(p))], ids=lambda p: p.stem)
def test_python_blocks_run(path: Path) -> None:
    """All blocks of a page one after the other, with the names that those before left."""
    names: dict[str, object] = {}
    for block in blocks(path):
        if block.kind == "python" and block.reason is None:
            exec(compile(block.code, str(path), "exec"), names)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages. --strict: a warning is an error."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", DOCS / "mkdocs.yml", "--site-dir", out],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


def test_the_pages_build_and_every_method_is_there(site: Path) -> None:
    from tests import methods

    page = (site / "methods.html").read_text(encoding="utf-8")
    for group in ("OUTERS", "SCHEDULES", "CODECS", "AGGREGATORS"):
        for method in getattr(methods, group):
            assert f'id="{type(method).__name__.lower()}"' in page, method
    assert page.count("https://arxiv.org/abs/") > 10


def test_the_round_on_its_page_is_the_round_in_the_code() -> None:
    (shown,) = [block.code for block in blocks(DOCS / "pages" / "round.md") if block.kind == "py"]
    source = (ROOT / "lowcomm" / "sync" / "round.py").read_text(encoding="utf-8")
    assert shown.strip() in source
    assert all(f"def {name}(" in shown for name in ("depart", "begin", "commit"))


def test_every_group_of_methods_has_its_place() -> None:
    """A new tuple in tests/methods.py needs a section."""
    from tests import methods

    groups = {name for name, value in vars(methods).items() if name.isupper() and isinstance(value, tuple)}
    page = (DOCS / "pages" / "methods.md").read_text(encoding="utf-8")
    assert groups == set(re.findall(r"<!-- methods: (\w+) -->", page))


def test_tables_are_the_measured_ones(site: Path) -> None:
    page = (site / "choosing.html").read_text(encoding="utf-8")
    for line in (ROOT / "benchmarks" / "results" / "codecs.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| int4 "):
            for cell in line.split("|")[2:9]:
                assert f"<td>{cell.strip()}</td>" in page
            break
    else:
        raise AssertionError("codecs.md has no row int4")


def test_the_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?(https?:[^\"' >]+)", text)
        fetched += re.findall(
            r"<link[^>]*rel=[\"']?(?:stylesheet|preload|preconnect)[^>]*href=[\"']?(https?:[^\"' >]+)", text
        )
        assert not fetched, f"{path.name} fetches {fetched}"
