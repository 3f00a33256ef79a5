"""Costs of a run over a store, by arithmetic: bytes, seconds and dollars per codec. Nothing is measured here.

    up = P,   down = (n - 1) P,   requests <= 20 + (n - 1)(1 + p) + p     per island and round

P: bytes of a payload, n: members, p: parts of a payload above 64 MiB. Prices are assumptions, named in the table.
`python -m benchmarks.store_cost` -> results/store_cost.json and .md
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.common import write_result_and_table
from lowcomm.plan.codecs import CODECS, HEADER_BYTES
from lowcomm.store.objects import PART_BYTES

PARAMETERS, MEMBERS, ROUNDS_PER_DAY = 1_000_000_000, 8, 144
LINK_BITS_PER_S = 100e6
INTERNET, REGION = 0.09, 0.02
"""Dollars per GB that leaves a bucket: to the internet, to another region of the same cloud."""
PER_THOUSAND_REQUESTS = 0.005


def rows() -> list[dict[str, Any]]:
    """One for each codec."""
    found: list[dict[str, Any]] = []
    for codec in CODECS:
        payload = codec.body_bytes(PARAMETERS) + HEADER_BYTES
        parts = math.ceil(payload / PART_BYTES) if payload > PART_BYTES else 0
        down = (MEMBERS - 1) * payload
        day_gb = MEMBERS * down * ROUNDS_PER_DAY / 1e9
        requests = 20 + (MEMBERS - 1) * (1 + parts) + parts
        found.append(
            {
                "codec": codec.name,
                "parameters": PARAMETERS,
                "members": MEMBERS,
                "up_bytes": payload,
                "down_bytes": down,
                "down_s": 8 * down / LINK_BITS_PER_S,
                "requests": requests,
                "requests_dollars_per_day": requests * MEMBERS * ROUNDS_PER_DAY * PER_THOUSAND_REQUESTS / 1000,
                "egress_gb_per_day": day_gb,
                "internet_dollars_per_day": day_gb * INTERNET,
                "region_dollars_per_day": day_gb * REGION,
            }
        )
    return found


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    heads = ["codec", "up", "down", "s at 100 Mbit/s", "requests, at most", "$ a day: internet", "another region"]
    heads += ["same region, or R2"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in result["rows"]:
        cells = [
            row["codec"],
            _gb(row["up_bytes"]),
            _gb(row["down_bytes"]),
            f"{row['down_s']:,.0f}",
            str(row["requests"]),
        ]
        cells += [f"{row['internet_dollars_per_day']:,.0f}", f"{row['region_dollars_per_day']:,.0f}", "0"]
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        f"{PARAMETERS / 1e9:g}B parameters, {MEMBERS} members, {ROUNDS_PER_DAY} rounds a day; bytes and requests per "
        f"member and round, dollars for all. Assumed: ${INTERNET} and ${REGION} per GB that leaves the bucket, "
        f"${PER_THOUSAND_REQUESTS} per thousand requests (at most "
        f"${max(r['requests_dollars_per_day'] for r in result['rows']):.1f} a day in all). By arithmetic, "
        f"`{result['command']}`."
    )
    return "\n".join([*lines, "", note, ""])


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def main(arguments: Sequence[str]) -> int:
    """Takes no arguments."""
    if arguments:
        raise SystemExit("usage: python -m benchmarks.store_cost")
    print(write_result_and_table("store_cost", "python -m benchmarks.store_cost", rows(), table))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
