"""SCAFFOLD: control variates take the drift of unequal clients out of their gradients.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, arXiv 1910.06378.

    g <- g - c_k + c,    c_k' = mean of the raw g over the round's steps
    c <- c + 1 / N sum_{k in S} (c_k' - c_k)

c_k: control variate of client k; c: that of the server; both begin at 0; S: the clients that were counted; N: all
islands. The paper's option II, c_k - c + (x - y_k) / (K eta), is this mean for plain SGD without clipping; taken from
the gradients it holds for every inner optimizer and schedule of learning rates.
Any shape and float dtype of weights; c and c_k are fp32.
Cost on the wire: a second fp32 sum of the size of the Delta per round, 8 (n - 1) / n B per parameter and island,
whatever the codec is. Memory: three fp32 copies of what is trained (c, c_k, the sum of gradients), which are
in checkpoints.
Deviates: c_k' from gradients (see above); corrections are added after gradient clipping; the mean of the model is
weighted as the aggregator says, that of c is not.
Reduces to: one island => FedAvg, as c = c_k; equal gradients on all islands => FedAvg, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lowcomm.local.objective import Objective
from lowcomm.types import Delta


@dataclass(frozen=True, kw_only=True)
class Scaffold(Objective):
    """c - c_k on the gradient of every inner step."""

    sends: ClassVar[bool] = True

    def correct(self, grads: Delta, local: Delta, start: Delta, controls: Delta) -> None:
        for name, grad in grads.items():
            grad.add_(controls[name].to(grad.device, grad.dtype))

    def check(self) -> None:
        return None
