"""Put measured tables and values between the markers of README.md and the page of results. `--check` only compares.

python -m benchmarks.readme [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any

from benchmarks.codecs_report import codecs_table
from benchmarks.common import RESULTS, ROOT
from benchmarks.fedlora_table import fedlora_summary
from benchmarks.headline_summary import headline_summary
from benchmarks.optimizers import optimizers_table
from benchmarks.planner_learned import learned_table
from benchmarks.summary import summary_table
from benchmarks.tables import quality_table, streams_table
from benchmarks.time_to_loss_table import time_to_loss_summary

PAGES = (ROOT / "README.md", ROOT / "docs" / "pages" / "results.md")


def filled(text: str) -> str:
    """A page with every marked table and value made anew from its result file."""
    text = re.sub(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", _table, text, flags=re.DOTALL)
    return re.sub(
        r"(<!-- value: (\w+) (\w+) -->)\n[^\n]*?( times as long| beyond| s;|$)", _value, text, flags=re.MULTILINE
    )


def _load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _table(match: re.Match[str]) -> str:
    if match[2] == "summary":
        return f"{match[1]}{summary_table(_load('codecs'), _load('time_to_loss'))}{match[3]}"
    tables = {
        "codecs": codecs_table,
        "streams": streams_table,
        "headline": headline_summary,
        "time_to_loss": time_to_loss_summary,
        "optimizers": optimizers_table,
        "planner_learned": learned_table,
        "fedlora": fedlora_summary,
    }
    table = tables.get(match[2], quality_table)
    return f"{match[1]}{table(_load(match[2]))}{match[3]}"


def _value(match: re.Match[str]) -> str:
    value = _load(match[2])["rows"][0][match[3]]
    forms = {" times as long": "{:.2f}", " s;": "{:.3f}"}
    shown = forms.get(match[4], "{:.1%}").format(value)
    return f"{match[1]}\n{shown}{match[4]}"


def main() -> None:
    """Rewrite the pages, or exit with 1 if one is not up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for page in PAGES:
        now = page.read_text(encoding="utf-8")
        then = filled(now)
        if options.check and now != then:
            sys.exit(f"{page.name} is not what benchmarks/results say: run python -m benchmarks.readme")
        if not options.check:
            page.write_text(then, encoding="utf-8")


if __name__ == "__main__":
    main()
