"""The values of K fp32 vectors in ascending order, coordinate by coordinate, with the same bits on every machine.

Values are compared as integers: bits whose sign and magnitude are made one order, in which -0 comes before 0. So no
two different values are equal, and no way of sorting can be told from another. 8 K bytes per element.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.dispatch import Path, check_rows, choose_path


def sort_rows(rows: Tensor, *, path: Path | None = None) -> None:
    """Sort fp32 [K, n], dense, along K in place; NaN comes first or last, by its sign.

    On a GPU it is eager torch.

    Raises:
        ValueError: another type or shape.
    """
    check_rows("rows", rows, torch.float32, None, None)
    if not rows.is_contiguous():
        raise ValueError("rows: expected dense rows; call contiguous first")
    if rows.numel() == 0:
        return
    if rows.device.type == "cpu" and choose_path(rows.device, path) == "numba":
        from lowcomm_kernels.sort_rows import numba as impl
    else:
        from lowcomm_kernels.sort_rows import reference as impl
    impl.sort_rows(rows)
