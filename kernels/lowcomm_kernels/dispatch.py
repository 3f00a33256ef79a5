"""Which implementation runs where, how many threads, and checks of the buffers that callers hand in."""

from __future__ import annotations

import importlib.util
import os
import warnings
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Path = Literal["reference", "numba", "triton"]
_HINT = "pip install 'lowcomm[kernels]'"


@cache
def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@cache
def _warn_no_numba() -> None:
    warnings.warn(
        f"numba is missing: the eager reference runs instead, about 15 times slower; {_HINT}",
        RuntimeWarning,
        stacklevel=4,
    )


def choose_path(device: torch.device, path: Path | None = None) -> Path:
    """The implementation for tensors on `device`; `path` forces one (tests and benchmarks).

    CPU: numba, or the reference with one warning if numba is missing. CUDA and ROCm: Triton, never anything else.

    Raises:
        RuntimeError: a GPU tensor without triton; `path="triton"` on the CPU outside Triton's interpreter.
        ValueError: unknown device or path, numba asked for on a GPU.
    """
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={device.type}: expected cpu or cuda; move the tensor first")
    if path is None:
        if device.type == "cuda":
            path = "triton"
        elif _has("numba"):
            path = "numba"
        else:
            _warn_no_numba()
            path = "reference"
    if path not in ("reference", "numba", "triton"):
        raise ValueError(f"path={path!r}: expected reference, numba or triton")
    if path == "numba" and device.type != "cpu":
        raise ValueError("path=numba: expected a CPU tensor; leave path out")
    if path == "triton":
        if not _has("triton"):
            raise RuntimeError(f"triton is missing and the tensor is on {device.type}; {_HINT}")
        if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise RuntimeError("path=triton on the CPU needs TRITON_INTERPRET=1 set before triton is imported")
    return path


def use_threads() -> int:
    """Set numba's thread count to torch's (as far as numba has them); returns the count."""
    import numba

    count = max(1, min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))  # pyright: ignore
    if numba.get_num_threads() != count:
        numba.set_num_threads(count)
    return count


def check_flat(name: str, tensor: Tensor, dtype: torch.dtype, numel: int | None = None) -> None:
    """Raise ValueError unless `tensor` is 1-D, contiguous, of `dtype` and (if given) of `numel` elements."""
    if tensor.dim() != 1 or not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous 1-D tensor, got shape {tuple(tensor.shape)}; use .reshape(-1)")
    if tensor.dtype != dtype:
        raise ValueError(f"{name}.dtype={tensor.dtype}: expected {dtype}")
    if numel is not None and tensor.numel() != numel:
        raise ValueError(f"{name}.numel={tensor.numel()}: expected {numel}")


def output(name: str, out: Tensor | None, numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`out` after a check, or a fresh uninitialised 1-D tensor.

    Callers in a loop hand in their own: pages that the system has just given cost twice as much to write.
    """
    if out is None:
        return torch.empty(numel, dtype=dtype, device=device)
    check_flat(name, out, dtype, numel)
    if out.device != device:
        raise ValueError(f"{name}.device={out.device}: expected {device}")
    return out
