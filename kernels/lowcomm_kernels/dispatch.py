"""Which implementation runs where, how many threads, and checks of the buffers that callers hand in."""

from __future__ import annotations

import importlib.util
import os
import warnings
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lowcomm_kernels.errors import NonFiniteError

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
    """Set numba's thread count to torch's (as far as numba has them), with torch's as it was; returns the count.

    Numba's OpenMP pool starts with `omp_set_num_threads(all cores)` in the process-wide libgomp that torch shares. Left
    like that, torch would go on with more threads than the user set: sums would change their last bits, and islands
    that share a machine would take each other's cores.
    """
    import numba

    wanted = torch.get_num_threads()
    count = max(1, min(wanted, numba.config.NUMBA_NUM_THREADS))  # pyright: ignore
    if numba.get_num_threads() != count:
        numba.set_num_threads(count)
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)
    return count


def task_count(blocks: int) -> int:
    """Tasks for a numba loop over blocks: a few per thread, so that a slow core does not hold up the end."""
    return max(1, min(blocks, 8 * use_threads()))


def raise_bad(bad: np.ndarray) -> None:
    """Raise NonFiniteError with the smallest index >= 0 that a task wrote into int64 [tasks], if any did."""
    found = bad[bad >= 0]
    if found.size:
        raise NonFiniteError(int(found.min()))


def check_rows(name: str, tensor: Tensor, dtype: torch.dtype, rows: int | None, columns: int | None) -> None:
    """Raise ValueError unless `tensor` is 2-D of that dtype and shape (None: any) with dense, apart rows."""
    if tensor.dim() != 2 or tensor.dtype != dtype:
        raise ValueError(f"{name}: expected 2-D {dtype}, got {tuple(tensor.shape)} {tensor.dtype}")
    if (rows is not None and tensor.shape[0] != rows) or (columns is not None and tensor.shape[1] != columns):
        raise ValueError(f"{name}.shape={tuple(tensor.shape)}: expected ({rows}, {columns})")
    if tensor.numel() and (tensor.stride(1) != 1 or (tensor.shape[0] > 1 and tensor.stride(0) < tensor.shape[1])):
        raise ValueError(f"{name}.stride={tensor.stride()}: expected elements of a row side by side; use .contiguous()")


def flat_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """The memory that the rows of a checked 2-D tensor span, as a 1-D view, and the step from row to row."""
    rows, columns = tensor.shape
    step = tensor.stride(0) if rows > 1 else columns
    return tensor.as_strided(((rows - 1) * step + columns if rows else 0,), (1,)), step


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
