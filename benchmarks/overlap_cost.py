"""What an inner step costs while a transfer is on its way, against steps without one, in the same run.

    python -m benchmarks.overlap_cost [--preset 3m] [--rate-mbit 8] [--rounds 8] [--launches 3]

Two hosts of benchmarks/netlab (root, iproute2), streaming with 4-bit updates over a slow link, so that about a third of
the steps have a transfer on its way. Two cases: `a core to spare` (the peer waits instead of training, so that the
exchange's threads have a core) and `no core to spare` (both islands train, on a machine of two cores). Steps in which
an exchange starts or lands are left out: what they wait is `blocked_s` in a run's own log.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.common import write_result
from benchmarks.netlab import Lab, Link
from lowcomm import LocalSGD
from lowcomm.codec import ErrorFeedback, Int4
from lowcomm.model import ModelConfig, build_model, token_losses
from lowcomm.schedule import Streaming
from lowcomm.transport import Collective

EVERY, DELAY, VOCABULARY, SEQ_LEN, SEQUENCES = 36, 24, 260, 64, 8


def worker(preset: str, rounds: int, peer_trains: bool, out: Path) -> None:
    """On each host; rank 0 writes the seconds of its steps: those with a transfer on its way, and those without."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=600))
    model = build_model(
        ModelConfig(preset=preset),  # pyright: ignore[reportArgumentType]
        vocab_size=VOCABULARY,
        max_tokens=SEQ_LEN,
        seed=0,
        eos_id=0,
    )
    inner = torch.optim.AdamW(model.parameters(), lr=1e-3)
    codec, schedule = ErrorFeedback(codec=Int4()), Streaming(fragments=1, delay=DELAY)
    sync = LocalSGD(
        model, inner, every=EVERY, codec=codec, schedule=schedule, transport=Collective(timeout_s=600, streams=1)
    )
    trains = dist.get_rank() == 0 or peer_trains
    text = torch.randint(VOCABULARY, (SEQUENCES, SEQ_LEN + 1))
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for step in range(1, EVERY * rounds + 1):
        before = flying(sync)
        start = time.perf_counter()
        if trains:
            token_losses(model, text[:, :-1], text[:, 1:]).mean().backward()
        inner.step()
        inner.zero_grad()
        took, after = time.perf_counter() - start, flying(sync)
        if step > EVERY and before == after and step % EVERY not in (0, DELAY):
            seconds["with" if before else "without"].append(took)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(seconds), encoding="utf-8")
    sync.finish()
    dist.barrier()
    os._exit(0)


def flying(sync: LocalSGD) -> bool:
    """Whether an exchange is in flight right now."""
    return any(not flight.pending.future.done() for flight in sync.state.in_flight.values())


def measured(preset: str, rate_mbit: float, rounds: int, peer_trains: bool) -> dict[str, list[float]]:
    """Seconds of rank 0's steps on two hosts that are brought up for it."""
    with tempfile.TemporaryDirectory() as directory, Lab(2, Link(rate_mbit=rate_mbit)) as lab:
        out = Path(directory) / "times.json"
        command = ["-m", "benchmarks.overlap_cost", "--worker", str(out), "--preset", preset]
        command += ["--rounds", str(rounds), *(["--peer-trains"] if peer_trains else [])]
        lab.run_group(command, 29513, Path(directory))
        return json.loads(out.read_text(encoding="utf-8"))


def row(case: str, launches: list[dict[str, list[float]]]) -> dict[str, object]:
    """Ratio of the medians in each launch; their median and range."""
    ratios = [statistics.median(t["with"]) / statistics.median(t["without"]) for t in launches]
    return {
        "case": case,
        "ratio": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "step_s": statistics.median(s for t in launches for s in t["without"]),
        "steps_with": sum(len(t["with"]) for t in launches),
        "steps_without": sum(len(t["without"]) for t in launches),
        "launches": len(launches),
    }


def main() -> None:
    """Both cases, launches interleaved; write benchmarks/results/overlap_cost.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="3m")
    parser.add_argument("--rate-mbit", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--launches", type=int, default=3)
    parser.add_argument("--peer-trains", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        worker(options.preset, options.rounds, options.peer_trains, options.worker)
        return
    cases = {"a core to spare": False, "no core to spare": True}
    found: dict[str, list[dict[str, list[float]]]] = {case: [] for case in cases}
    for _ in range(options.launches):
        for case, peer_trains in cases.items():
            found[case].append(measured(options.preset, options.rate_mbit, options.rounds, peer_trains))
    shared = {"preset": options.preset, "rate_mbit": options.rate_mbit, "H": EVERY, "delay": DELAY}
    rows = [{**row(case, launches), **shared} for case, launches in found.items()]
    command = f"python -m benchmarks.overlap_cost --preset {options.preset} --rate-mbit {options.rate_mbit:g}"
    path = write_result("overlap_cost", f"{command} --rounds {options.rounds} --launches {options.launches}", rows)
    print(path, json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
