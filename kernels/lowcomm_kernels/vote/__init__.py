"""Majority vote over the packed signs of W peers, and its application to fp32 values.

signSGD with majority vote (Bernstein et al., arXiv 1810.05291), Distributed Lion (Liu et al., arXiv 2404.00438).

bit = 1 if more than half of the peers' bits are 1; on a tie (W even) it is the bit of peer `tie_peer`, so a tie has no
lean of its own and a caller can rotate it with the round. Bits past the end of all inputs stay 0 if they were 0.
Apply: target = target + step where the bit is 1, target - step where it is 0. W/8 + 8 bytes per element.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.dispatch import Path, check_flat, check_rows, choose_path, output

MAX_PEERS = 255


def vote(words: Tensor, *, tie_peer: int = 0, out: Tensor | None = None, path: Path | None = None) -> Tensor:
    """uint8 [W, m] packed signs -> uint8 [m].

    Raises:
        ValueError: W outside [1, 255], `tie_peer` outside [0, W), sizes or types do not fit.
    """
    _check(words, tie_peer, None)
    result = output("out", out, words.shape[1], torch.uint8, words.device)
    if result.numel():
        _implementation(words.device, path).vote(words, result, tie_peer=tie_peer)
    return result


def vote_apply(words: Tensor, target: Tensor, step: float, *, tie_peer: int = 0, path: Path | None = None) -> None:
    """Vote over uint8 [W, ceil(n / 8)] and move `target` (fp32 [n]) by `step` (rounded to fp32), in place.

    Raises as `vote`; `target` is untouched then.
    """
    check_flat("target", target, torch.float32)
    _check(words, tie_peer, -(-target.numel() // 8))
    if target.numel():
        _implementation(words.device, path).vote_apply(words, target, step=step, tie_peer=tie_peer)


def _check(words: Tensor, tie_peer: int, columns: int | None) -> None:
    check_rows("words", words, torch.uint8, None, columns)
    if not 1 <= words.shape[0] <= MAX_PEERS:
        raise ValueError(f"words.shape[0]={words.shape[0]}: expected 1 to {MAX_PEERS} peers")
    if not 0 <= tie_peer < words.shape[0]:
        raise ValueError(f"tie_peer={tie_peer}: expected 0 <= tie_peer < {words.shape[0]}; use round % peers")


def _implementation(device: torch.device, path: Path | None):
    chosen = choose_path(device, path)
    if chosen == "numba":
        from lowcomm_kernels.vote import numba as impl
    elif chosen == "triton":
        from lowcomm_kernels.vote import triton as impl
    else:
        from lowcomm_kernels.vote import reference as impl
    return impl
