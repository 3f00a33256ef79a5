"""Speed of 8-bit and 4-bit quantisation in bitsandbytes and hivemind on the CPU, as a share of copy.

    python kernels/bench/peers.py [--elements 67108864] [--threads 2] [--repeats 7]

Prints one JSON row for each op, path "bitsandbytes" or "hivemind", as `timing.py` says; one that can't be imported
gives no rows and a line on stderr. The traffic counted is that of our own op of the same name, so that shares compare;
their formats are others (bitsandbytes: 8-bit dynamic map or fp4, fp32 scales; hivemind: one scale or fp32 scales of
4096). Slow ones run on at most 8M elements. An op that fails in their code gives no row either: hivemind's decoders do
not run with NumPy 2.5. Decoding, and all of hivemind, allocates outputs: there is no other way.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from timing import EAGER_ELEMENTS, SCALE_BYTES, Bench, Op, Rows, main
from torch import Tensor

BLOCK = 256


def _find(module: str) -> Any:
    """The module, or None with a line on stderr: these are other projects, and whatever they raise means absent."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except Exception as error:
        print(f"{module}: no rows, {type(error).__name__}: {error}", file=sys.stderr)
        return None


def _bitsandbytes8(functional: Any, x: Tensor) -> Iterator[Op]:
    n = x.numel()
    codes, scales = torch.empty(n, dtype=torch.uint8), torch.empty(n // BLOCK)
    wire = n * (1 + SCALE_BYTES)
    _, state = functional.quantize_blockwise(x, blocksize=BLOCK, out=codes, absmax=scales)
    yield Op(
        "quantise int8",
        lambda: functional.quantize_blockwise(x, code=state.code, blocksize=BLOCK, out=codes, absmax=scales),
        4 * n + wire,
    )
    yield Op("dequantise int8", lambda: functional.dequantize_blockwise(codes, state), 4 * n + wire)


def _bitsandbytes4(functional: Any, x: Tensor) -> Iterator[Op]:
    n = x.numel()
    wire = n * (1 / 2 + SCALE_BYTES)
    packed, packed_state = functional.quantize_4bit(x, blocksize=BLOCK, quant_type="fp4")
    yield Op("quantise int4", lambda: functional.quantize_4bit(x, blocksize=BLOCK, quant_type="fp4"), 4 * n + wire)
    yield Op("dequantise int4", lambda: functional.dequantize_4bit(packed, packed_state), 4 * n + wire)


def _hivemind(compression: Any, x: Tensor) -> Iterator[Op]:
    traffic = x.numel() * (5 + SCALE_BYTES)
    info = compression.CompressionInfo.from_tensor(x)
    codecs = {"uniform": compression.Uniform8BitQuantization(), "blockwise": compression.BlockwiseQuantization()}
    for name, codec in codecs.items():
        yield Op(f"quantise int8, {name}", lambda codec=codec: codec.compress(x, info), traffic)
    for name, codec in codecs.items():
        message = codec.compress(x, info)
        yield Op(f"dequantise int8, {name}", lambda codec=codec, m=message: codec.extract(m), traffic)


def _rows_of(path: str, module: str, make: Callable[[Any, Tensor], Iterator[Op]], bench: Bench) -> Rows:
    """Until an op fails; the rest of that module is then left out, with a line on stderr."""
    found = _find(module)
    if found is None:
        return
    try:
        for op in make(found, torch.randn(bench.elements)):
            yield bench.row(op, path)
    except Exception as error:
        print(f"{path}: no further rows, {type(error).__name__}: {error}", file=sys.stderr)


def rows(elements: int, device: torch.device, repeats: int) -> Rows:
    """Those of bitsandbytes, then those of hivemind; on the CPU only."""
    if device.type != "cpu":
        return
    small = Bench(min(elements, EAGER_ELEMENTS), device, min(repeats, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bits8 = Bench(elements, device, repeats)
        yield from _rows_of("bitsandbytes", "bitsandbytes.functional", _bitsandbytes8, bits8)
        yield from _rows_of("bitsandbytes", "bitsandbytes.functional", _bitsandbytes4, small)
        yield from _rows_of("hivemind", "hivemind.compression", _hivemind, small)


if __name__ == "__main__":
    main("Speed of bitsandbytes and hivemind as a share of copy.", rows)
