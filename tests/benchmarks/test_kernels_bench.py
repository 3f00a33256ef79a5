"""The benchmarks' own code: forms for the compiler compute what the reference does, rows are counted right, tables."""

# Modules of kernels/bench are found at run time.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowcomm_kernels.dct import dct
from lowcomm_kernels.dequantise import dequantise, dequantise_accumulate
from lowcomm_kernels.fp8 import decode_bf16, encode_bf16
from lowcomm_kernels.quantise import delta_quantise, quantise
from lowcomm_kernels.reduce_quantised import reduce_to_float
from lowcomm_kernels.sign import sign_accumulate, sign_pack
from lowcomm_kernels.topk import Chunks, topk

from benchmarks.kernels_tables import GOALS, write_kernels_table

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "kernels" / "bench"
N = 8192


@pytest.fixture(autouse=True)
def _bench_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


def normal(seed: int, n: int = N) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 1000), bits=st.sampled_from((8, 4)))
@settings(max_examples=20, deadline=None)
def test_compiled_forms_write_the_bytes_of_the_reference(seed: int, bits: int) -> None:
    import compiled_ops as plain

    x, new, error = normal(seed), normal(seed + 1), normal(seed + 2)
    expected = quantise(x, bits=bits, path="reference")
    codes, scales = torch.empty_like(expected.codes), torch.empty_like(expected.scales)
    plain.quantise(x, codes, scales, bits)
    assert codes.equal(expected.codes) and scales.equal(expected.scales)
    out = torch.empty(N)
    plain.dequantise(codes, scales, out, bits)
    assert out.equal(dequantise(expected, N, bits=bits, path="reference"))
    ours, theirs = new.clone(), new.clone()
    plain.dequantise_accumulate(codes, scales, ours, 0.1, bits)
    dequantise_accumulate(expected, theirs, 0.1, bits=bits, path="reference")
    assert ours.equal(theirs)
    kept = error.clone()
    expected = delta_quantise(x, new, kept, beta=0.9, bits=bits, path="reference")
    plain.delta_quantise(x, new, error, 0.9, codes, scales, bits)
    assert codes.equal(expected.codes) and scales.equal(expected.scales) and error.equal(kept)


def test_compiled_forms_of_other_ops() -> None:
    import compiled_ops as plain

    x, out = normal(3), torch.empty(N)
    q = quantise(x, bits=8, path="reference")
    rows, scales = torch.stack([q.codes] * 4), torch.stack([q.scales] * 4)
    plain.reduce_to_float(rows, scales, 0.25, out, 8)
    assert out.equal(reduce_to_float(rows, scales, torch.full((4,), 0.25), N, bits=8, path="reference"))
    half = torch.empty(N, dtype=torch.int16)
    plain.encode_bf16(x, half)
    plain.decode_bf16(half, out)
    assert half.equal(encode_bf16(x, path="reference")) and out.equal(decode_bf16(half, path="reference"))
    kept = topk(x, Chunks(N), path="reference")
    indices, values = torch.empty_like(kept.indices), torch.empty_like(kept.values)
    plain.topk(x, indices, values)
    assert indices.equal(kept.indices) and values.equal(kept.values)
    plain.sparse_decode(indices[None], values[None], 0.5, out)
    base = torch.arange(N // 4096).repeat_interleave(64) * 4096
    assert out.count_nonzero() == kept.values.numel()
    assert out[base + indices.long()].equal(0.5 * values)
    square = normal(4, 128 * 128).view(128, 128)
    coefficients = torch.empty(128 * 128)
    from lowcomm_kernels.dct.table import matrix

    plain.dct(square, matrix(), coefficients)
    torch.testing.assert_close(coefficients, dct(square, path="reference"), atol=1e-4, rtol=1e-4)


def test_compiled_forms_with_a_plain_mean_differ_in_scales_only() -> None:
    import compiled_ops as plain

    x = normal(5)
    q = quantise(x, bits=2, path="reference")
    codes, scales = torch.empty_like(q.codes), torch.empty_like(q.scales)
    plain.quantise(x, codes, scales, 2)
    assert (scales - q.scales).abs().max() <= 1
    assert (codes != q.codes).float().mean() < 0.01
    s = sign_pack(x, path="reference")
    words, scales = torch.empty_like(s.words), torch.empty_like(s.scales)
    plain.sign_pack(x, words, scales)
    assert words.equal(s.words) and (scales - s.scales).abs().max() <= 1
    ours, theirs = x.clone(), x.clone()
    plain.sign_accumulate(s.words, s.scales, ours, 0.1)
    sign_accumulate(s, theirs, 0.1, path="reference")
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_a_row_counts_what_the_op_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    import timing

    clock = iter([0.0, 0.5, 1.0, 1.25, 2.0, 3.0, 4.0, 4.25, 5.0, 5.5, 6.0, 7.0])
    bench = timing.Bench(1000, torch.device("cpu"), 3)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    calls: list[int] = []
    row = bench.row(timing.Op("op", lambda: calls.append(1), 4000.0), "numba")
    # Copies of 8000 bytes take 0.5, 1 and 0.5 s; ops of 4000 bytes 0.25, 0.25 and 1 s.
    assert row["share_of_copy"] == 1.0
    assert (row["share_min"], row["share_max"]) == (0.25, 2.0)
    assert (len(calls), row["repeats"], row["elements"], row["op"], row["path"]) == (4, 3, 1000, "op", "numba")


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    command = [sys.executable, str(BENCH / "sparse.py"), "--device", "cuda"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no GPU here" in done.stderr
    assert not list(tmp_path.iterdir())


def committed(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def test_committed_cpu_figures_reach_their_goals() -> None:
    result = committed("kernels_cpu")
    shares = {r["op"]: r for r in result["rows"] if r["path"] == "numba"}
    for op, goal in GOALS.items():
        assert shares[op]["elements"] == 64 << 20 and shares[op]["threads"] == 2
        assert shares[op]["share_of_copy"] >= goal, op
    assert {r["path"] for r in result["rows"]} >= {"numba", "eager", "compile"}


def test_committed_aot_table_has_no_spills() -> None:
    rows = committed("kernels_aot")["rows"]
    assert len({r["triton"] for r in rows}) == 1
    assert {r["target"] for r in rows} == {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert not [r for r in rows if r["spill_bytes"] or r["registers"] > r["registers_cap"]]


def test_committed_fuzz_run_is_a_million_without_a_crash() -> None:
    rows = committed("fuzz_codecs")["rows"]
    assert sum(r["mutations"] for r in rows) >= 1_000_000
    assert all(r["crashes"] == 0 and r["refused"] + r["accepted"] == r["mutations"] for r in rows)


@pytest.mark.parametrize("name", ["kernels_cpu", "kernels_aot"])
def test_committed_tables_are_those_of_their_results(name: str, tmp_path: Path) -> None:
    source = ROOT / "benchmarks" / "results" / f"{name}.json"
    copied = tmp_path / source.name
    copied.write_bytes(source.read_bytes())
    assert write_kernels_table(copied).read_text(encoding="utf-8") == source.with_suffix(".md").read_text("utf-8")
