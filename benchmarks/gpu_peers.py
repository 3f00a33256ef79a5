"""Quantisation kernels of other packages on the card, as a share of its own copy, where they can be imported.

    python -m benchmarks.gpu_peers [--elements 67108864] [--repeats 7]

bitsandbytes' blockwise 8 and 4 bits, torchft's fp8 rows. Their formats are others; counted bytes are those of our op of
as many bits, so that shares compare. Prints rows as kernels/bench/dense.py does; none for a package that is not there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.common import ROOT

sys.path.insert(0, str(ROOT / "kernels" / "bench"))
from timing import SCALE_BYTES, Bench, Op  # pyright: ignore[reportMissingImports]


def found(name: str) -> Any | None:
    """The module; None: it can't be imported."""
    try:
        return importlib.import_module(name)
    except Exception:  # a package may fail in many ways where its own libraries are missing
        return None


def operations(x: torch.Tensor) -> Iterator[tuple[Op, str]]:
    """The ops of what is there."""
    n = x.numel()
    if (bnb := found("bitsandbytes.functional")) is not None:
        for bits, quantise in ((8, bnb.quantize_blockwise), (4, bnb.quantize_4bit)):
            wire = n * (bits / 8 + SCALE_BYTES)
            yield Op(f"quantise int{bits}", lambda q=quantise: q(x, blocksize=256), 4 * n + wire), "bitsandbytes"
    if (torchft := found("torchft.quantization")) is not None:
        rows = [x.view(-1, 256)]
        yield (
            Op("encode fp8", lambda: torchft.fused_quantize_into_fp8(rows, 1), n * (5 + SCALE_BYTES)),
            "torchft",
        )


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=64 << 20)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    device = torch.device("cuda")
    bench = Bench(options.elements, device, options.repeats)
    x = torch.randn(options.elements, device=device)
    for op, package in operations(x):
        try:
            print(json.dumps(bench.row(op, package)), flush=True)
        except Exception as error:  # another version's signature
            print(f"{package}, {op.name}: {type(error).__name__}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
