"""Runs in a store as real processes: what kills, freezes, partitions and churn cost.

    python -m benchmarks.store [--only killed churn ...] [--short]

Members are processes of `lowcomm join`, over a directory, or a server that speaks S3 (`localbucket`); `joined` and
`partitioned` need a shaped network (benchmarks/netlab: root). Rows of scenarios that are not run stay as they were.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

from benchmarks import store_links, store_rounds, store_scenarios, store_unequal
from benchmarks.common import RESULTS, write_result
from lowcomm.run.run_dir import git_commit

SCENARIOS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "killed": store_scenarios.killed,
    "all_killed": store_scenarios.all_killed,
    "frozen": store_scenarios.frozen,
    "store_down": store_scenarios.store_down,
    "not_finite": store_scenarios.not_finite,
    "requests": store_scenarios.requests,
    "joined": store_links.joined,
    "partitioned": store_links.partitioned,
    "refused": store_links.refused,
    "round_2": store_rounds.two,
    "round_4": store_rounds.four,
    "unequal": store_unequal.unequal,
    "churn": store_scenarios.churn,
}


def main() -> None:
    """Run them one after the other; each row is written when it is there."""
    parser = argparse.ArgumentParser(description="Runs in a store as real processes.")
    parser.add_argument("--only", nargs="+", choices=sorted(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--short", action="store_true", help="fewer rounds: shows that it works, measures nothing")
    options = parser.parse_args()
    path = RESULTS / "store.json"
    known = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = {row["scenario"]: row for row in known}
    for name in options.only:
        start = time.monotonic()
        row = SCENARIOS[name](options.short)
        took = {"took_s": time.monotonic() - start, "short": options.short, "commit": git_commit()}
        rows[name] = {"scenario": name, **row, **took}
        print(json.dumps(rows[name]), flush=True)
        write_result("store", "python -m benchmarks.store", [rows[one] for one in SCENARIOS if one in rows])


if __name__ == "__main__":
    main()
