"""Dense Triton kernels through Triton's interpreter: the bytes of the eager reference.

The interpreter is chosen when triton is imported, so one child process runs every check and the tests read its report.
"""

# Settings travel as plain dictionaries.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ["quantise", "dequantise", "reduce", "sign", "vote", "fp8", "nonfinite"]
SHAPES = ((1, 16), (255, 16), (700, 48), (2048 + 300, 256), (5000, 4096))
"""Elements and block: odd, shorter than a block, a block that is no power of two, full tiles and a rest, one row."""


@pytest.fixture(scope="module")
def report() -> dict[str, str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT / 'kernels'}:{ROOT / 'tests'}"}
    child = subprocess.run(
        [sys.executable, str(Path(__file__))], env=environment, capture_output=True, text=True, timeout=200
    )
    assert child.returncode == 0, child.stderr[-2000:]
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_interpreted(report: dict[str, str], check: str) -> None:
    assert report[check] == "same"


def check_quantise() -> None:
    from lowcomm_kernels.quantise import Quantised, delta_quantise, quantise
    from test_kernels_dense import KINDS, data, poison, same

    for numel, block in SHAPES:
        for bits in (8, 4, 2):
            for number, kind in enumerate(KINDS):
                rounding = ("nearest", "stochastic")[number % 2]
                how = {"bits": bits, "block": block, "rounding": rounding, "seed": 2**64 - 5, "offset": 1 << 35}
                x = data(numel, kind)
                expected = quantise(x, path="reference", **how)
                same(expected, quantise(x, path="triton", out=Quantised(*map(poison, expected)), **how))
            for rounding, new in (("nearest", data(numel, "normal", 1)), ("stochastic", None)):
                how = {"beta": 0.9, "bits": bits, "block": block, "rounding": rounding}
                old, error = data(numel, "normal", 2), data(numel, "wide", 3)
                left = poison(error)
                expected = delta_quantise(old, new, error, error_out=left, path="reference", **how)
                same(expected, delta_quantise(old, new, error, path="triton", **how))
                same(left, error)


def check_dequantise() -> None:
    from lowcomm_kernels.dequantise import dequantise, dequantise_accumulate
    from lowcomm_kernels.quantise import quantise
    from test_kernels_dense import data, poison, same

    for numel, block in SHAPES:
        for bits in (8, 4, 2):
            how = {"bits": bits, "block": block}
            q = quantise(data(numel, "normal"), path="reference", **how)
            value = dequantise(q, numel, path="reference", **how)
            same(value, dequantise(q, numel, path="triton", out=poison(value), **how))
            acc, other = data(numel, "normal", 1), data(numel, "normal", 1)
            dequantise_accumulate(q, acc, 0.3, path="reference", **how)
            dequantise_accumulate(q, other, 0.3, path="triton", **how)
            same(acc, other)


def check_reduce() -> None:
    from lowcomm_kernels.quantise import quantise
    from lowcomm_kernels.reduce_quantised import reduce_quantised, reduce_to_float
    from test_kernels_dense import data, poison, same

    for numel, block in SHAPES:
        for bits, out_bits in ((8, 8), (4, 2), (2, 4)):
            how = {"bits": bits, "block": block}
            parts = [quantise(data(numel, "normal", w), path="reference", **how) for w in range(3)]
            codes = torch.zeros(3, len(parts[0].codes) + 5, dtype=torch.uint8)[:, :-5]
            codes.copy_(torch.stack([q.codes for q in parts]))
            rows = (codes, torch.stack([q.scales for q in parts]), torch.tensor([0.3, 0.2, 0.5]), numel)
            value = reduce_to_float(*rows, path="reference", **how)
            same(value, reduce_to_float(*rows, path="triton", out=poison(value), **how))
            left, other = poison(value), poison(value)
            how |= {"out_bits": out_bits}
            expected = reduce_quantised(*rows, error_out=left, path="reference", **how)
            same(expected, reduce_quantised(*rows, error_out=other, path="triton", **how))
            same(left, other)
            same(expected, reduce_quantised(*rows, path="triton", **how))


def check_sign() -> None:
    from lowcomm_kernels.sign import Signs, delta_sign, sign_accumulate, sign_pack, sign_unpack
    from test_kernels_dense import KINDS, data, poison, same

    for numel, block in SHAPES:
        for kind in KINDS:
            x = data(numel, kind)
            expected = sign_pack(x, block=block, path="reference")
            same(expected, sign_pack(x, block=block, path="triton", out=Signs(*map(poison, expected))))
        value = sign_unpack(expected, numel, block=block, path="reference")
        same(value, sign_unpack(expected, numel, block=block, path="triton", out=poison(value)))
        acc, other = data(numel, "normal", 1), data(numel, "normal", 1)
        sign_accumulate(expected, acc, 0.3, block=block, path="reference")
        sign_accumulate(expected, other, 0.3, block=block, path="triton")
        same(acc, other)
        for new in (None, data(numel, "wide", 2)):
            error = data(numel, "normal", 3)
            left = poison(error)
            expected = delta_sign(acc, new, error, beta=0.9, block=block, error_out=left, path="reference")
            same(expected, delta_sign(acc, new, error, beta=0.9, block=block, path="triton"))
            same(left, error)


def check_vote() -> None:
    from lowcomm_kernels.vote import vote, vote_apply
    from test_kernels_dense import data, poison, same

    for peers, size, gap in ((1, 1, 0), (2, 8, 0), (3, 9, 3), (4, 300, 4), (2, 4104, 8), (255, 12, 0)):
        words = torch.randint(0, 256, (peers, size + gap), generator=torch.Generator().manual_seed(peers))
        words = words.to(torch.uint8)[:, :size]
        for tie in {0, peers - 1}:
            expected = vote(words, tie_peer=tie, path="reference")
            same(expected, vote(words, tie_peer=tie, path="triton", out=poison(expected)))
            target, other = data(8 * size - 3, "normal"), data(8 * size - 3, "normal")
            vote_apply(words, target, 0.1, tie_peer=tie, path="reference")
            vote_apply(words, other, 0.1, tie_peer=tie, path="triton")
            same(target, other)


def check_fp8() -> None:
    from lowcomm_kernels.fp8 import decode_bf16, decode_fp8, encode_bf16, encode_fp8
    from lowcomm_kernels.quantise import Quantised
    from test_kernels_dense import KINDS, data, poison, same

    for numel, block in SHAPES:
        for kind in KINDS:
            x = data(numel, kind)
            expected = encode_fp8(x, block=block, path="reference")
            same(expected, encode_fp8(x, block=block, path="triton", out=Quantised(*map(poison, expected))))
            value = decode_fp8(expected, block=block, path="reference")
            same(value, decode_fp8(expected, block=block, path="triton", out=poison(value)))
            bits = encode_bf16(x, path="reference")
            same(bits, encode_bf16(x, path="triton", out=poison(bits)))
            same(decode_bf16(bits, path="reference"), decode_bf16(bits, path="triton", out=poison(x)))


def check_nonfinite() -> None:
    from lowcomm_kernels.errors import NonFiniteError
    from lowcomm_kernels.fp8 import encode_bf16, encode_fp8
    from lowcomm_kernels.quantise import delta_quantise, quantise
    from lowcomm_kernels.sign import sign_pack
    from test_kernels_dense import data

    x = data(5000, "normal")
    x[[2403, 4650]] = float("nan")
    calls = [
        lambda: quantise(x, bits=8, path="triton"),
        lambda: delta_quantise(x, None, torch.zeros(5000), beta=1.0, bits=4, path="triton"),
        lambda: sign_pack(x, path="triton"),
        lambda: encode_fp8(x, path="triton"),
        lambda: encode_bf16(x, path="triton"),
    ]
    for call in calls:
        with pytest.raises(NonFiniteError) as caught:
            call()
        assert caught.value.index == 2403


def main() -> None:
    """The child: each check's name and "same" or what differed."""
    import traceback

    checks = [check_quantise, check_dequantise, check_reduce, check_sign, check_vote, check_fp8, check_nonfinite]
    found = {}
    for check in checks:
        try:
            check()
            found[check.__name__.removeprefix("check_")] = "same"
        except Exception:
            found[check.__name__.removeprefix("check_")] = traceback.format_exc()[-1500:]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
