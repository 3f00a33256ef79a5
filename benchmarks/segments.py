"""Seconds of one sum over a slow line: in segments of 128 kB and in 16 a chunk, beside roll calls or apart from them.

    python -m benchmarks.segments [--rate-mbit 0.75] [--repeats 6]

Two hosts of benchmarks/netlab (root, iproute2), 0.46 MB, with and without a round trip of 50 ms, and a queue of 10 s
before the line, as in benchmarks/headline.py. Connections are warm from a fast line. Before each sum stand 0.8 s of
silence and four small gathers, as between two syncs; ways take turns. `all_reduce` is gloo's own. `apart`: a TCP
connection that no small message uses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.common import write_result
from benchmarks.netlab import Lab, Link
from benchmarks.netlab.lab import reshape
from lowcomm.transport import Collective, pipelined

ELEMENTS = 115_776
DELAYS_MS = (0.0, 25.0)
QUEUE_MS = 10_000.0
WARM_TURNS = 3


def ways_of() -> dict[str, Callable[[], object]]:
    """The sum of one vector, by how it travels."""
    vector, out, stock = torch.ones(ELEMENTS), torch.empty(ELEMENTS), torch.ones(ELEMENTS)
    usual, group = pipelined.SMALLEST, dist.new_group(backend="gloo", timeout=timedelta(seconds=600))
    assert isinstance(group, dist.ProcessGroup)
    beside, apart = Collective(timeout_s=600), Collective(group, timeout_s=600)

    def sum_in(smallest: int, transport: Collective) -> None:
        pipelined.SMALLEST = smallest
        transport.weighted_sum([vector], [0.5, 0.5], out)

    return {
        "all_reduce": lambda: dist.all_reduce(stock),
        "128 kB": lambda: sum_in(1 << 15, beside),
        "128 kB, apart": lambda: sum_in(1 << 15, apart),
        "16 a chunk": lambda: sum_in(usual, beside),
        "16 a chunk, apart": lambda: sum_in(usual, apart),
    }


def worker(control: Path, slow: Link, repeats: int, out: Path) -> None:
    """On each host: times of all ways, written by rank 0, which also makes the line slow."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=600))
    small, ways = Collective(timeout_s=600), ways_of()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(WARM_TURNS + repeats):
        if turn == WARM_TURNS:
            dist.barrier()
            if dist.get_rank() == 0:
                reshape(control, slow)
            time.sleep(1)  # until the router has read it
        for name, way in ways.items():
            dist.barrier()
            time.sleep(0.8)
            for _ in range(4):
                small.gather([torch.ones(32)])
            start = time.perf_counter()
            way()
            if turn >= WARM_TURNS:
                times[name].append(time.perf_counter() - start)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(times), encoding="utf-8")
    dist.barrier()
    os._exit(0)  # leaving groups takes long over this line


def measured(rate_mbit: float, delay_ms: float, repeats: int) -> dict[str, list[float]]:
    """Seconds of each way on two hosts that are brought up for it."""
    fast = Link(rate_mbit=1000.0, delay_ms=delay_ms, queue_ms=QUEUE_MS)
    with tempfile.TemporaryDirectory() as directory, Lab(2, fast) as lab:
        out = Path(directory) / "times.json"
        values = (lab.control, rate_mbit, delay_ms, repeats)
        command = ["-m", "benchmarks.segments", "--worker", str(out), json.dumps([str(v) for v in values])]
        lab.run_group(command, 29513, Path(directory))
        return json.loads(out.read_text(encoding="utf-8"))


def main() -> None:
    """Bring up two hosts, time, write benchmarks/results/segments.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate-mbit", type=float, default=0.75)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--worker", nargs=2, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        out, (control, rate, delay, repeats) = Path(options.worker[0]), json.loads(options.worker[1])
        slow = Link(rate_mbit=float(rate), delay_ms=float(delay), queue_ms=QUEUE_MS)
        worker(Path(control), slow, int(repeats), out)
        return
    rows = [
        {
            "way": name,
            "rate_mbit": options.rate_mbit,
            "rtt_ms": 2 * delay_ms,
            "fp32_bytes": 4 * ELEMENTS,
            "line_s": 32 * ELEMENTS / (options.rate_mbit * 1e6),
            "seconds_s": statistics.median(t),
            "fastest_s": min(t),
            "slowest_s": max(t),
            "repeats": len(t),
        }
        for delay_ms in DELAYS_MS
        for name, t in measured(options.rate_mbit, delay_ms, options.repeats).items()
    ]
    command = f"python -m benchmarks.segments --rate-mbit {options.rate_mbit:g} --repeats {options.repeats}"
    print(write_result("segments", command, rows))


if __name__ == "__main__":
    main()
