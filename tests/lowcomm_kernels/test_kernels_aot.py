"""Dense Triton kernels compile ahead of time without spills; fp32 tensors move 16 bytes at a time.

A child process compiles, because the interpreter's switch must be off when triton is imported. The sparse kernels have
their own file; the whole table is kernels/bench/aot.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAIN_TARGETS = ("sm_90", "gfx942")
EVERY_TARGET = ("quantise_8", "delta_quantise_8", "delta_sign")
CODE = f"""
import json
import aot
for entry in aot.entries():
    for target in aot.TARGETS if entry.name in {EVERY_TARGET} else aot.TARGETS[1::2]:
        print(json.dumps(aot.compile_entry(entry, target)))
"""
LEAST_BYTES = {
    "quantise_8": 5.008, "quantise_4": 4.508, "quantise_2": 4.258,
    "quantise_8_stochastic": 5.008, "quantise_4_stochastic": 4.508, "quantise_2_stochastic": 4.258,
    "delta_quantise_8": 17.008, "delta_quantise_4": 16.508, "delta_quantise_2": 16.258,
    "delta_quantise_8_stochastic": 17.008, "delta_quantise_4_stochastic": 16.508,
    "delta_quantise_2_stochastic": 16.258,
    "dequantise_8": 5.008, "dequantise_4": 4.508, "dequantise_2": 4.258,
    "dequantise_accumulate_8": 9.008, "dequantise_accumulate_4": 8.508, "dequantise_accumulate_2": 8.258,
    "reduce_to_float_8": 5.008, "reduce_to_float_4": 4.508, "reduce_to_float_2": 4.258,
    "reduce_quantised_8": 6.016, "reduce_quantised_4": 5.016, "reduce_quantised_2": 4.516,
    "sign_pack": 4.133, "delta_sign": 16.133, "sign_accumulate": 8.133,
    "vote": 0.375, "vote_apply": 8.25,
    "encode_fp8": 5.008, "decode_fp8": 5.008, "encode_bf16": 6.0, "decode_bf16": 6.0,
}  # fmt: skip
"""By the format, with one peer; the vote also reads the row that decides ties."""


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT / "kernels/bench")
    child = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=230)
    assert child.returncode == 0, child.stderr[-2000:]
    return [json.loads(line) for line in child.stdout.splitlines()]


def test_every_kernel_compiles_for_every_maker(rows: list[dict]) -> None:
    targets = {name: {row["target"] for row in rows if row["kernel"] == name} for name in LEAST_BYTES}
    assert {row["kernel"] for row in rows} == set(LEAST_BYTES)
    assert all({"sm_90", "gfx942"} <= found for found in targets.values())
    assert all(targets[name] == {"sm_80", "sm_90", "sm_100", "gfx942"} for name in EVERY_TARGET)


def test_no_spills_and_registers_under_the_cap(rows: list[dict]) -> None:
    assert not [row for row in rows if row["spill_bytes"] or row["registers"] > row["registers_cap"]]


def test_accesses_are_16_bytes_wide_and_the_least_possible(rows: list[dict]) -> None:
    # Scalar accesses to an fp32 tensor would show as bytes missing from the 16-byte ones.
    found = {t: {r["kernel"]: r["global_bytes_per_element"] for r in rows if r["target"] == t} for t in MAIN_TARGETS}
    assert found["sm_90"] == LEAST_BYTES
    # Triton 3.9 pipelines the loop over peers on gfx942: its loads then stand twice in the text.
    looped = {name for name in LEAST_BYTES if name.startswith("reduce_")}
    assert {n: b for n, b in found["gfx942"].items() if n not in looped} == {
        n: b for n, b in LEAST_BYTES.items() if n not in looped
    }
