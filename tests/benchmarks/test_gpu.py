"""The GPU's one command without a GPU: what it refuses, its checks in Triton's interpreter, training, tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_stand_ins import stand_in
from benchmarks.gpu_table import gpu_table

ROOT = Path(__file__).resolve().parents[2]
PLACES = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
OTHERS = ("xxhash", "transformers", "safetensors", "numba", "tyro", "rich", "cryptography", "peft", "datasets")
BARE = """
import sys, runpy
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name in {names!r} else real(name, *a)
sys.meta_path.insert(0, Missing())
sys.argv = {argv!r}
runpy.run_module({module!r}, run_name="__main__")
"""


def bare(module: str, *arguments: str) -> list[dict[str, Any]]:
    """Rows of a module that runs where torch, numpy and triton are all there is."""
    code = BARE.format(names=OTHERS, argv=[module, *arguments], module=module)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **PLACES, "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_without_a_gpu_it_says_so_and_writes_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def written(*_: object) -> None:
        raise AssertionError("a result was written")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "write_result_and_table", written)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "no GPU here: nothing measured, nothing written\n"


def test_old_packages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.10.1+cu130")
    assert gpu.why_not() == "torch 2.10.1+cu130 is too old: 2.11 or newer is needed"
    monkeypatch.setattr(torch, "__version__", "2.11.0a0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    import triton

    monkeypatch.setattr(triton, "__version__", "3.5.1")
    assert gpu.why_not() == "triton 3.5.1 is too old: 3.6 or newer is needed"
    monkeypatch.setattr(triton, "__version__", "3.6.0")
    assert gpu.why_not() is None


def test_every_kernel_package_is_checked() -> None:
    """A new folder of kernels/lowcomm_kernels needs a check."""
    text = (ROOT / "benchmarks" / "gpu_checks.py").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (ROOT / "kernels" / "lowcomm_kernels").glob("*/triton.py")}
    assert folders and {f for f in folders if f"from lowcomm_kernels.{f} import" not in text} == set()


def test_a_row_of_training_needs_torch_alone() -> None:
    (row,) = bare(
        "benchmarks.gpu_train", "--preset", "nano", "--method", "int4", "--device", "cpu", "--sequences", "2",
        "--tokens", "16",
    )  # fmt: skip
    assert row["without"] == ["xxhash"]
    assert min(row["step_s"], row["encode_s"], row["sync_s"]) > 0
    assert 0.5 < row["sent_bytes_per_sync"] / (row["parameters"] / 2) < 2


def test_a_failed_part_and_one_without_time_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    python = sys.executable
    rows = gpu.run_part("it", [python, "-c", "print('{\"op\": \"copy\"}'); raise SystemExit('no memory left')"], 60.0)
    assert rows == [{"part": "speed", "op": "copy"}, {"part": "failed", "name": "it", "why": "no memory left"}]
    late = gpu.run_part("it", [python, "-c", "import threading; threading.Event().wait()"], 0.5)
    assert [r["part"] for r in late] == ["failed"] and "not done within" in late[0]["why"]


def test_the_table_says_what_was_found() -> None:
    train = {
        "part": "train", "preset": "30m", "method": "SparseLoCo", "engine": "simulated", "tokens_per_step": 4096,
        "step_s": 0.02, "encode_s": 0.003, "sync_s": 0.01, "sent_bytes_per_sync": 6e5, "peak_bytes": 2**30,
        "without": ["xxhash"],
    }  # fmt: skip
    rows: list[dict[str, Any]] = [
        {"part": "device", "name": "Some card", "memory_bytes": 2**37, "torch": "2.13.0", "triton": "3.9.0"},
        {"part": "check", "op": "topk", "cases": 20, "same": True, "differs": 0},
        {"part": "speed", "op": "quantise int8", "path": "triton", "share_of_copy": 0.91, "gb_per_s": 3000.0},
        {"part": "speed", "op": "quantise int8", "path": "bitsandbytes", "share_of_copy": 0.5, "gb_per_s": 1500.0},
        train,
        {"part": "failed", "name": "train, 150m", "why": "the budget was spent"},
    ]
    text = gpu_table({"rows": rows, "command": "python -m benchmarks.gpu", "created": "2026-12-01T00:00"})
    assert "1 Triton ops give the bytes of the eager reference in 20 cases." in text
    assert "| quantise int8 | 91.0% | 50.0% | 3,000 |" in text
    assert "| 30m | SparseLoCo | simulated | 20.0 | 3.0 | 10.0 | 0.6 | 1.00 |" in text
    assert "Without xxhash" in text and "Left out: train, 150m (the budget was spent)." in text
    rows[1] |= {"same": False, "differs": 3}
    wrong = gpu_table({"rows": rows, "command": "", "created": "2026-12-01"})
    assert "**Other bytes than the reference: topk (3 of 20).**" in wrong


@pytest.mark.parametrize("size", [0, 5, 100_000])
def test_stand_ins_have_the_sizes_of_what_they_stand_for(size: int) -> None:
    xxhash: Any = stand_in()
    data = bytes(size)
    assert len(xxhash.xxh3_64_digest(data)) == 8 and len(xxhash.xxh3_128_digest(data)) == 16
    assert 0 <= xxhash.xxh3_64_intdigest(data) < 2**64
    state = xxhash.xxh3_128()
    state.update(data)
    assert state.digest() == xxhash.xxh3_128_digest(data) != xxhash.xxh3_128_digest(data + b"x")


@pytest.mark.long
def test_the_checks_find_nothing_under_the_interpreter() -> None:
    rows = bare("benchmarks.gpu_checks", "--device", "cpu", "--small")
    assert len(rows) > 20 and all(row["same"] for row in rows)
