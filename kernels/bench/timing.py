"""What the CPU and GPU speed tables share: one op, and its share of a copy that is timed just before it.

`gb_per_s` counts the least traffic of an op: the bytes that its specification reads and writes, once each. A copy
counts what it reads and what it writes. `share_of_copy` is the median over repeats of the speed of the op over that of
the copy made just before it, of fp32 tensors of the same length. It can pass 1: an op that reads more than it writes
spends less on fetching the lines that it is about to overwrite.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from lowcomm_kernels.dispatch import Path as KernelPath
from torch import Tensor

EAGER_ELEMENTS = 8 << 20
"""Slow paths are timed on fewer elements, beside a copy of that size."""
PEERS = 4
SCALE_BYTES = 2 / 256
"""Per element, at block 256."""
Rows = Iterator[dict[str, object]]


@dataclass(frozen=True)
class Op:
    """One call with preallocated outputs."""

    name: str
    call: Callable[[], object]
    traffic_bytes: float
    """What the specification reads and writes, once."""


class Bench:
    """Times ops on `elements` fp32 elements of `device`, `repeats` times each."""

    def __init__(self, elements: int, device: torch.device, repeats: int) -> None:
        self.elements, self.device, self.repeats = elements, device, repeats
        self._source, self._target = torch.randn(elements, device=device), torch.empty(elements, device=device)

    def row(self, op: Op, path: str) -> dict[str, object]:
        """{op, path, gb_per_s, share_of_copy, share_min, share_max, repeats, elements, threads}."""
        op.call()  # compiles, and touches the pages of outputs
        self._target.copy_(self._source)
        speeds, shares = [], []
        copied_bytes = 2 * self._source.numel() * self._source.element_size()
        for _ in range(self.repeats):
            copy = copied_bytes / self._seconds(lambda: self._target.copy_(self._source))
            speed = op.traffic_bytes / self._seconds(op.call)
            speeds.append(speed / 1e9)
            shares.append(speed / copy)
        return {
            "op": op.name, "path": path, "gb_per_s": round(statistics.median(speeds), 2),
            "share_of_copy": round(statistics.median(shares), 4), "share_min": round(min(shares), 4),
            "share_max": round(max(shares), 4), "repeats": self.repeats, "elements": self.elements,
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
        }  # fmt: skip

    def _seconds(self, call: Callable[[], object]) -> float:
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def both_paths(
    elements: int, device: torch.device, repeats: int, operations: Callable[[Tensor, KernelPath], Iterator[Op]]
) -> Rows:
    """Rows of the numba or Triton path at full size, then of eager torch on at most 8M elements."""
    fast: KernelPath = "numba" if device.type == "cpu" else "triton"
    paths: tuple[KernelPath, ...] = (fast, "reference")
    for path in paths:
        n = elements if path == fast else min(elements, EAGER_ELEMENTS)
        bench = Bench(n, device, repeats if path == fast else min(repeats, 3))
        x = torch.randn(n, device=device)
        for op in operations(x, path):
            yield bench.row(op, "eager" if path == "reference" else path)


def main(description: str, rows: Callable[[int, torch.device, int], Rows]) -> None:
    """Print the rows as JSON, one a line, each as soon as it is there."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--elements", type=int, default=64 << 20, help="fp32 elements of the dense tensors")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=7, help="timed pairs of copy and op; the median counts")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing measured, nothing written", file=sys.stderr)
        raise SystemExit(2)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    for row in rows(arguments.elements, torch.device(arguments.device), arguments.repeats):
        print(json.dumps(row), flush=True)
