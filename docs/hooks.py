"""What mkdocs calls while it builds: measured tables and the list of methods go into the pages from their sources."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def on_config(config: Any) -> Any:
    """The checkout is importable from here on; what a hook adds while it is loaded is taken away again."""
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(Path(__file__).resolve().parent)]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the plots that benchmarks wrote, as results/NAME.svg."""
    from mkdocs.structure.files import File

    for plot in sorted((ROOT / "benchmarks" / "results").glob("*.svg")):
        files.append(File.generated(config, f"results/{plot.name}", abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill `<!-- table: NAME -->`, `<!-- result: NAME -->`, `<!-- file: PATH -->` and `<!-- methods: GROUP -->`."""
    from method_pages import methods_section

    from benchmarks.readme import filled

    text = filled(markdown)
    text = re.sub(r"<!-- result: (\w+) -->", lambda m: _read(f"benchmarks/results/{m[1]}.md"), text)
    text = re.sub(r"<!-- file: ([\w./-]+) -->", lambda m: _read(m[1]), text)
    return re.sub(r"<!-- methods: (\w+) -->", lambda m: methods_section(m[1]), text)


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")
