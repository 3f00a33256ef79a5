"""Sparse and transform Triton kernels compile ahead of time without spills; accesses are 16 bytes wide.

A child process compiles, because the interpreter's switch must be off when triton is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The two main kernels for every target, the rest for one of each maker: the whole table is kernels/bench/aot_sparse.py.
CODE = """
import json
from aot_sparse import TARGETS, compile_entry, entries
for entry in entries():
    main = entry.name in ("delta_topk_2", "dct_topk")
    for target in TARGETS if main else TARGETS[1::2]:
        print(json.dumps(compile_entry(entry, target) | {"wide": entry.wide}))
"""


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT / "kernels/bench")
    child = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=200)
    assert child.returncode == 0, child.stderr[-2000:]
    return [json.loads(line) for line in child.stdout.splitlines()]


def test_every_kernel_compiles_for_every_maker(rows: list[dict]) -> None:
    targets = {name: {row["target"] for row in rows if row["kernel"] == name} for name in {r["kernel"] for r in rows}}
    assert len(targets) == 14
    assert all({"sm_90", "gfx942"} <= found for found in targets.values())
    assert targets["delta_topk_2"] == {"sm_80", "sm_90", "sm_100", "gfx942"}


def test_no_spills_and_registers_under_the_cap(rows: list[dict]) -> None:
    assert not [row for row in rows if row["spill_bytes"] or row["registers"] > row["registers_cap"]]


def test_dense_tensors_move_16_bytes_at_a_time(rows: list[dict]) -> None:
    least = {"topk": 4, "delta_topk_2": 16, "delta_topk_8": 16, "delta_topk_16": 16, "sparse_decode_2": 4}
    for row in rows:
        if row["kernel"] in least:
            # Kept entries add at most 7 % to the least traffic; scalar accesses would show as missing bytes.
            assert least[row["kernel"]] <= row["global_bytes_per_element"] < 1.07 * least[row["kernel"]], row
        if row["wide"]:
            # A wave of 64 lanes needs half as many.
            assert row["wide_accesses"] >= (2 if row["target"] == "gfx942" else 4), row
