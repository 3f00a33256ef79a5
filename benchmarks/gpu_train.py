"""Seconds of a step, of an encode and of a sync on one card, and the memory that they take at most.

    python -m benchmarks.gpu_train --preset 30m --method int4 [--device cuda] [--processes]

Two islands: both in this process (simulated), or with `--processes` this one and another over gloo beside the same
card, started by torchrun, with anchors and codecs on the CPU, as NCCL has one rank per card. Prints one JSON row; of
two processes the first one's, with the slower one's seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import benchmarks.gpu_stand_ins as stand_ins  # isort: skip  # before lowcomm
import torch
import torch.distributed as dist

from benchmarks.gpu_model import Decoder, text
from lowcomm.codec import Codec, ErrorFeedback, Fp32, Int4, TopK
from lowcomm.outer import SGD, Nesterov, Outer
from lowcomm.schedule import EveryH, Schedule, Streaming
from lowcomm.sync import LocalSGD
from lowcomm.types import Round

METHODS: dict[str, tuple[Outer, Codec, Schedule]] = {
    "diloco": (Nesterov(lr=0.7, momentum=0.8), Fp32(), EveryH()),
    "int4": (Nesterov(lr=0.7, momentum=0.8), ErrorFeedback(codec=Int4()), Streaming(fragments=2)),
    "sparseloco": (SGD(lr=1.0), ErrorFeedback(codec=TopK(chunk=4096, k=64, bits=2), beta=0.95), EveryH()),
}
NAMES = {"diloco": "DiLoCo fp32", "int4": "int4 streaming, 2 fragments", "sparseloco": "SparseLoCo"}
WARMUP, STEPS, SYNCS = 3, 8, 3
"""Inner steps before timing, timed ones, and timed syncs."""


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds, with all that the card has to do for it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def slowest(seconds: float) -> float:
    """Of all processes."""
    if not dist.is_initialized():
        return seconds
    value = torch.tensor([seconds], dtype=torch.float64)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return float(value)


class Islands:
    """The models of this process, their optimizers and the sync between all."""

    def __init__(self, preset: str, method: str, device: torch.device, local: int, shape: tuple[int, int]) -> None:
        outer, codec, schedule = METHODS[method]
        torch.manual_seed(0)
        first = Decoder(preset)
        self.models = [first] + [Decoder(preset) for _ in range(local - 1)]
        for other in self.models[1:]:
            other.load_state_dict(first.state_dict())
        self.models = [m.to(device) for m in self.models]
        self.inners = [torch.optim.AdamW(m.parameters(), lr=1e-4, fused=True) for m in self.models]
        self.sync = LocalSGD(
            self.models, self.inners, every=1_000_000, outer=outer, codec=codec, schedule=schedule, norm_bound=None,
            outer_device="cpu" if dist.is_initialized() else None,
        )  # fmt: skip
        self.batches = [text(*shape, seed=i, device=device) for i in range(local)]
        self.device = device

    def step(self, island: int) -> None:
        """One inner step of a local island, in bf16 where the card has it."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.models[island](self.batches[island])
        loss.backward()
        self.sync.count_tokens(self.batches[island].numel(), island)
        self.inners[island].step()
        self.inners[island].zero_grad()

    def everyone(self) -> None:
        """One inner step of each."""
        for i in range(len(self.models)):
            self.step(i)


def encode_s(islands: Islands) -> float:
    """Seconds of one encode of the whole model's Delta, error feedback included; the median."""
    state = islands.sync.state
    codec, found = state.spec.codec, list[float]()
    for _ in range(SYNCS):
        total = 0.0
        for index, fragment in enumerate(state.fragments):
            anchor, replica = state.anchor_of(index, 0), state.replicas[0]
            flat, _ = anchor.delta_of(replica.tensors(fragment), 0)
            now = Round(index=state.round, step=state.step, fragments=(index,), seed=1, island=0)
            before = state.codec_states[0][index]
            total += timed(lambda f=fragment, d=flat, b=before, n=now: codec.encode(f.views(d), b, n), islands.device)
            fragment.release()
        found.append(total)
    return statistics.median(found)


def measure(preset: str, method: str, device: torch.device, shape: tuple[int, int]) -> dict[str, Any]:
    """One row. shape: sequences per step, and their tokens."""
    islands = Islands(preset, method, device, 1 if dist.is_initialized() else 2, shape)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARMUP):
        islands.everyone()
    parts = tuple(range(len(islands.sync.state.fragments)))
    islands.sync.sync(parts)  # allocates, compiles
    step_s = statistics.median(slowest(timed(lambda: islands.step(0), device)) for _ in range(STEPS))
    islands.everyone()
    coded_s = encode_s(islands)
    syncs: list[float] = []
    for _ in range(SYNCS):
        islands.everyone()
        syncs.append(slowest(timed(lambda: islands.sync.sync(parts), device)))
    sent = islands.sync.transport.sent_bytes[0] / (1 + SYNCS)
    return {
        "part": "train",
        "preset": preset,
        "method": NAMES[method],
        "islands": 2,
        "engine": "processes over gloo" if dist.is_initialized() else "simulated",
        "parameters": sum(p.numel() for p in islands.models[0].parameters()),
        "tokens_per_step": shape[0] * shape[1],
        "step_s": step_s,
        "encode_s": coded_s,
        "sync_s": statistics.median(syncs),
        "sent_bytes_per_sync": sent,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "without": list(stand_ins.MISSING),
    }


def main() -> None:
    """Measure and print; under torchrun with --processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="30m")
    parser.add_argument("--method", choices=tuple(METHODS), default="diloco")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--processes", action="store_true", help="over gloo, under torchrun")
    parser.add_argument("--sequences", type=int, default=8, help="of a step")
    parser.add_argument("--tokens", type=int, default=512, help="of a sequence")
    options = parser.parse_args()
    if options.processes:
        dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    row = measure(options.preset, options.method, torch.device(options.device), (options.sequences, options.tokens))
    if not options.processes or dist.get_rank() == 0:
        print(json.dumps(row), flush=True)
    if options.processes:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
