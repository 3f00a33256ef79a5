"""Errors that the kernels raise; the package imports nothing of `lowcomm`."""

from __future__ import annotations


class NonFiniteError(ValueError):
    """The input holds NaN or infinity; `index` is the first such element (flat)."""

    def __init__(self, index: int) -> None:
        super().__init__(f"element {index} is NaN or infinite; expected finite values: drop or repair the tensor")
        self.index = index
