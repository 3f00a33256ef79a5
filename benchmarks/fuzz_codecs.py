"""Throw mutated payloads at every decoder: only PayloadError may come out, or finite tensors of the right shapes.

    python -m benchmarks.fuzz_codecs [--mutations 1000000] [--seed 0]

Half of the mutants get a header and checksum that fit, or nothing behind the checksum would ever be reached. Writes
benchmarks/results/fuzz_codecs.json (per codec how many were refused and accepted, crashes, seconds, and how much memory
the whole run grew by) and its table fuzz_codecs.md. Refused: PayloadError in one line. Accepted: finite tensors of the
right shapes. Crashes: all else.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import write_result
from lowcomm.codec import Codec
from lowcomm.codec.wire import FIELDS, HEADER_BYTES, CodecId, seal, shapes_hash
from lowcomm.types import Delta, Payload, PayloadError, Round
from tests.methods import CODECS, name

SHAPES = {"w": (48, 19), "scale": (), "none": (0, 3), "b": (130,), "head": (7, 5, 3)}
ROUND = Round(index=12, step=96, fragments=(1,), seed=0x1234567890ABCDEF, island=2, run=0xBEE5F)
WORDS = [0, 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**63 - 1, 2**64 - 1]
"""Lengths and counts that overflow something."""
PATTERNS = [
    b"\x00\x00\x80\x7f",
    b"\x00\x00\xc0\x7f",
    b"\xff\xff\x7f\x7f",
    b"\x01\x00\x00\x00",
    b"\x80\x7f",
    b"\xff\xff",
]
"""Infinity, NaN, the largest float, the smallest subnormal, bf16 infinity, all ones."""


@dataclass(kw_only=True)
class Tally:
    """What became of one codec's mutants."""

    codec: str
    refused: int = 0
    accepted: int = 0
    mutations: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def delta_for(seed: int) -> Delta:
    """fp32 tensors with a stretch of zeros."""
    g = torch.Generator().manual_seed(seed)
    delta = {n: torch.randn(shape, generator=g) for n, shape in SHAPES.items()}
    delta["w"][10:30] = 0
    return delta


def mutate(data: bytearray, rng: random.Random, donor: bytes) -> bytearray:
    """One to three changes at random: cuts, growth, flips, words that overflow, NaN patterns, pieces of a stranger."""
    for _ in range(rng.randint(1, 3)):
        kind, at = rng.randrange(9), rng.randrange(len(data)) if data else 0
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data += rng.randbytes(rng.randint(1, 40))
        elif kind == 2 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 3 and data:
            data[at] = rng.choice((0x00, 0x08, 0x7F, 0x80, 0x88, 0xFF))
        elif kind == 4:
            place = rng.randrange(8) * 8
            data[place : place + 8] = struct.pack("<Q", rng.choice(WORDS))
        elif kind == 5:
            pattern = rng.choice(PATTERNS)
            data[at : at + len(pattern)] = pattern
        elif kind == 6:
            data[at : at + 24] = donor[at : at + 24]
        elif kind == 7:
            data[at : at + 16] = data[at : at + 16][::-1]
        elif kind == 8:
            del data[at : at + rng.randint(1, 8)]
    return data


def attempt(codec: Codec, data: bytearray, like: Delta, tally: Tally) -> None:
    """Decode one mutant and note what came of it."""
    payload = Payload(data=torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8))
    try:
        out = codec.decode(payload, like, ROUND)
    except PayloadError as error:
        tally.refused += 1
        if "\n" in str(error):
            tally.failures.append(f"more than one line: {error}")
        return
    except BaseException as error:
        tally.failures.append(f"{type(error).__name__}: {error} for {bytes(data).hex()[:400]}")
        return
    tally.accepted += 1
    shapes = {n: tuple(d.shape) for n, d in out.items()}
    if shapes != {n: tuple(s) for n, s in SHAPES.items()}:
        tally.failures.append(f"shapes {shapes} for {bytes(data).hex()[:400]}")
    elif not all(bool(d.isfinite().all()) for d in out.values()):
        tally.failures.append(f"values that are not finite for {bytes(data).hex()[:400]}")


def resealed(data: bytearray, codec_id: CodecId, like: Delta) -> bytearray:
    """The same body behind a header that fits it."""
    body = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    room = torch.zeros(HEADER_BYTES, dtype=torch.uint8)
    whole = body.clone() if body.numel() >= HEADER_BYTES else room
    return bytearray(seal(whole, codec_id, shapes_hash(like), ROUND).data.numpy().tobytes())


def fuzz(codecs: Sequence[Codec], mutations: int, seed: int) -> list[Tally]:
    """About `mutations` mutants, shared out evenly among the codecs; the same ones for the same seed."""
    like = delta_for(0)
    originals: list[Tensor] = [c.encode(like, c.init(like), ROUND)[0].data for c in codecs]
    tallies: list[Tally] = []
    for i, codec in enumerate(codecs):
        rng, tally = random.Random(seed * 1000 + i), Tally(codec=name(codec))
        source = originals[i].numpy().tobytes()
        codec_id = CodecId(FIELDS.unpack_from(source)[2])
        start = time.perf_counter()
        for number in range(-(-mutations // len(codecs))):
            donor = originals[rng.randrange(len(codecs))].numpy().tobytes()
            mutant = mutate(bytearray(source), rng, donor)
            attempt(codec, resealed(mutant, codec_id, like) if number % 2 else mutant, like, tally)
            tally.mutations += 1
        tally.seconds = time.perf_counter() - start
        tallies.append(tally)
    return tallies


def write_table(path: Path) -> Path:
    """RESULTS/fuzz_codecs.md from the result file."""
    result = json.loads(path.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = result["rows"]
    lines = ["| codec | mutations | refused | accepted | crashes | seconds |", "|---|---|---|---|---|---|"]
    columns = ("mutations", "refused", "accepted", "crashes", "seconds")
    for row in [*rows, {"codec": "all", **{c: sum(r[c] for r in rows) for c in columns}}]:
        counts = " | ".join(f"{row[c]:,.0f}" for c in columns)
        lines.append(f"| {row['codec']} | {counts} |")
    lines.append(
        f"\n`{result['command']}`, {result['hardware']['cpu']}, one process, commit {result['commit'][:10]}, "
        f"{result['created'][:10]}; memory grew by {rows[0]['memory_growth_bytes'] / 1e6:.1f} MB over the whole run."
    )
    target = path.with_suffix(".md")
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


def main() -> int:
    """Fuzz, print and write the result and its table; 1 if anything but PayloadError came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    fuzz(CODECS, 50 * len(CODECS), args.seed + 1)  # whatever is compiled or cached once does not count as growth
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tallies = fuzz(CODECS, args.mutations, args.seed)
    growth_bytes = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    rows = [
        {"codec": t.codec, "mutations": t.mutations, "refused": t.refused, "accepted": t.accepted,
         "crashes": len(t.failures), "seconds": round(t.seconds, 1), "memory_growth_bytes": growth_bytes}
        for t in tallies
    ]  # fmt: skip
    for tally in tallies:
        print(tally.codec, tally.refused, tally.accepted, *tally.failures[:3], sep="  ")
    command = f"python -m benchmarks.fuzz_codecs --mutations {args.mutations} --seed {args.seed}"
    path = write_result("fuzz_codecs", command, rows)
    print(path, write_table(path))
    return int(any(t.failures for t in tallies))


if __name__ == "__main__":
    raise SystemExit(main())
