"""One clock for all islands, whose processes start at different moments and whose machines count from others."""

from __future__ import annotations

import time

import torch

from lowcomm.transport.base import Transport


def agree_on_start(transport: Transport, base_s: float) -> float:
    """The time.perf_counter() at which the run's clock stood at 0; all islands take the largest `base_s` (seconds).

    It is counted from the middle of the moments at which two gathers in a row ended. One gather ends on each of two
    islands when the other's row arrives, up to a trip of the link apart; in the next one the order is reversed, so that
    the mean is the same moment on both if trips take equally long both ways. With more islands what is left is below
    the difference between their links' trips.
    """
    rows = [torch.tensor([base_s], dtype=torch.float64)] * len(transport.local)
    transport.gather(rows)
    first = time.perf_counter()
    table = transport.gather(rows)
    return (first + time.perf_counter()) / 2 - float(table.max())
